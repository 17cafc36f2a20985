package limit

import (
	"slices"
	"time"
)

// window is one limit: the server must not see more than requests in any span of length per. Times are
// those of its Queue.
type window struct {
	requests int
	share    int // of requests; less than all while the shared windows are down
	per      time.Duration
	first    int // index of the oldest arrival that counts

	usedByOthers int // as last observed
	observedAt   time.Duration
	probedAt     time.Duration // when a request was last sent although others used the whole limit
}

// slide drops the arrivals that have left the window. One that is exactly per old still counts, so that
// the limit holds whichever ends of a span the server includes.
func (w *window) slide(arrivals *arrivalTimes, now time.Duration) {
	for w.first < arrivals.tail() && now-arrivals.at(w.first) > w.per {
		w.first++
	}
}

// capacity returns how many requests of ours the window may hold.
func (w *window) capacity(now time.Duration) int {
	if now-w.observedAt > w.per {
		return w.requests
	}
	return w.requests - w.usedByOthers
}

// observe notes that at that time, when it could have seen sent of our requests, the server had remaining
// left. If the server's limit is not requests, sent + remaining is still what we may have.
//
// An answer older than the last is ignored. As sent includes requests still on their way, the result may
// be too small: for probeEvery (at most per) a smaller value does not replace a larger one.
func (w *window) observe(remaining, sent int, at time.Duration) {
	usedByOthers := max(0, w.requests-remaining-sent)
	if at >= w.observedAt && (usedByOthers >= w.usedByOthers || at-w.observedAt >= min(w.per, probeEvery)) {
		w.usedByOthers, w.observedAt = usedByOthers, at
	}
}

// arrivalTimes are the times at which the server has received our latest requests, at the latest, in
// order: never for one that is not written. Each has an index, which only grows.
type arrivalTimes struct {
	times []time.Duration
	head  int // index of times[0]
}

func (r *arrivalTimes) tail() int { return r.head + len(r.times) }

func (r *arrivalTimes) at(i int) time.Duration { return r.times[i-r.head] }

func (r *arrivalTimes) push(t time.Duration) { r.times = append(r.times, t) }

// forget removes the times before index head.
func (r *arrivalTimes) forget(head int) {
	r.times, r.head = r.times[head-r.head:], head
}

// drop removes the latest time, if there is one.
func (r *arrivalTimes) drop() { r.times = r.times[:max(0, len(r.times)-1)] }

// latest returns where in times the latest is that is not after t, or the first.
func (r *arrivalTimes) latest(t time.Duration) int {
	i := len(r.times) - 1
	for i > 0 && r.times[i] > t {
		i--
	}
	return i
}

// postpone replaces one time by never.
func (r *arrivalTimes) postpone(t time.Duration) {
	i := r.latest(t)
	r.times = append(slices.Delete(r.times, i, i+1), never)
}

// move replaces one time by an earlier one. There are no times in a Queue without windows.
func (r *arrivalTimes) move(from, to time.Duration) {
	if len(r.times) == 0 {
		return
	}
	i := r.latest(from)
	j, _ := slices.BinarySearch(r.times[:i], to)
	copy(r.times[j+1:i+1], r.times[j:i])
	r.times[j] = to
}
