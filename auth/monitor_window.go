package auth

import (
	"cmp"
	"context"
	"crypto/rand"
	"sync"
	"time"
)

// Each call waits for Take. So once the store has answered, Take waits for a few round trips at most.
const (
	takeLeast = 250 * time.Millisecond
	takeMost  = 2 * time.Second
)

// windowMonitor is the [monitor] of a [Windower].
type windowMonitor struct{ *monitor }

func (m windowMonitor) Window(key string, limits []Limit, hold time.Duration) Window {
	return &monitoredWindow{m: m.monitor, Window: m.windower.Window(key, limits, hold)}
}

// windowMemory is what a monitor knows about its windows. Their silence says nothing about the records.
type windowMemory struct {
	mu      sync.Mutex
	usual   time.Duration // the usual round trip; 0 until the first answer
	failure error         // why there was no answer, or nil
}

// patience is how long Take waits. For its first answer it waits as long as an exchange does, because a
// process that does not know of the others takes the whole limit.
func (w *windowMemory) patience(first time.Duration) (time.Duration, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.usual == 0 {
		return first, w.failure
	}
	return min(max(3*w.usual, takeLeast), takeMost), w.failure
}

// answered notes an answer.
func (w *windowMemory) answered(took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failure = nil
	change := (took - w.usual) / 8
	if took > w.usual { // follow a store that gets slower quickly
		change = (took - w.usual + 1) / 2
	}
	w.usual = max(1, w.usual+change)
}

// fail notes a failure, and reports whether that is new.
func (w *windowMemory) fail(err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	news := w.failure == nil
	w.failure = err
	return news
}

type monitoredWindow struct {
	m *monitor
	Window
	unasked sync.Map // ids of Takes that failed without asking the store: there is nothing to release
}

// Release implements [Window].
func (w *monitoredWindow) Release(id string, sent bool) {
	if _, ok := w.unasked.LoadAndDelete(id); !ok {
		w.Window.Release(id, sent)
	}
}

type taken struct {
	wait      time.Duration
	processes int
}

func (w *monitoredWindow) Take(ctx context.Context, id string) (time.Duration, int, error) {
	err := w.m.gate()
	patience, silent := w.m.windows.patience(w.m.timeout)
	if err = cmp.Or(err, silent); err != nil {
		w.unasked.Store(id, nil)
		return 0, 0, err
	}
	began := time.Now()
	t, err := w.take(ctx, patience, id)
	if err == nil {
		w.m.windows.answered(time.Since(began))
	} else if ctx.Err() == nil && unanswered(err) && w.m.windows.fail(err) {
		w.m.spawn(w.await)
	}
	return t.wait, t.processes, err
}

func (w *monitoredWindow) take(ctx context.Context, patience time.Duration, id string) (taken, error) {
	return run(ctx, w.m, patience, func(ctx context.Context) (t taken, err error) {
		t.wait, t.processes, err = w.Window.Take(ctx, id)
		return t, err
	}, func(taken) { w.Release(id, false) }, nil)
}

// await tries until there is an answer, and then once more: the time of the first is not that of a
// usual round trip.
func (w *monitoredWindow) await() {
	for {
		select {
		case <-time.After(jitter(askEvery)):
		case <-w.m.life.Done():
			return
		}
		if w.ask() != nil {
			continue
		}
		began := time.Now()
		if w.ask() == nil {
			w.m.windows.answered(time.Since(began))
			return
		}
	}
}

// ask takes a slot and releases it.
func (w *monitoredWindow) ask() error {
	id := rand.Text()
	defer w.Release(id, false)
	_, err := w.take(w.m.life, w.m.timeout, id)
	return err
}
