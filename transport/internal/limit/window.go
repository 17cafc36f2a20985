package limit

import "time"

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
	for w.first < arrivals.tail && now-arrivals.at(w.first) > w.per {
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

// arrivalTimes is a sorted ring of the times at which the server has received our latest requests, at the
// latest: never for one that is not written. Indices only grow; head is the oldest that is kept.
type arrivalTimes struct {
	buf        []time.Duration // its length is a power of two
	head, tail int
}

func (r *arrivalTimes) at(i int) time.Duration { return r.buf[i&(len(r.buf)-1)] }

func (r *arrivalTimes) set(i int, t time.Duration) { r.buf[i&(len(r.buf)-1)] = t }

// push adds the latest time.
func (r *arrivalTimes) push(t time.Duration) {
	if r.tail-r.head == len(r.buf) {
		buf := make([]time.Duration, max(8, 2*len(r.buf)))
		for i := r.head; i < r.tail; i++ {
			buf[i&(len(buf)-1)] = r.at(i)
		}
		r.buf = buf
	}
	r.tail++
	r.set(r.tail-1, t)
}

// drop removes the latest time, if there is one.
func (r *arrivalTimes) drop() { r.tail = max(r.head, r.tail-1) }

// move replaces one time by an earlier one. An empty ring is that of a Queue without windows.
func (r *arrivalTimes) move(from, to time.Duration) {
	if r.head == r.tail {
		return
	}
	i := r.tail - 1
	for i > r.head && r.at(i) > from {
		i--
	}
	for ; i > r.head && r.at(i-1) > to; i-- {
		r.set(i, r.at(i-1))
	}
	r.set(i, to)
}
