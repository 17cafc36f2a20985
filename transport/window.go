package transport

import "time"

// window is one limit: in no span of per does the server see more than requests. Times are counted
// as [Limiter] counts them.
type window struct {
	requests int
	ours     int // of requests, at the most; fewer while this process keeps to its share
	per      time.Duration
	first    int // the oldest stamp that still counts here

	// What the server last showed of others' use: withheld of requests are not ours to have.
	withheld int
	seen     time.Duration
	probed   time.Duration // when a request last left although nothing was ours
}

// slide lets go of the stamps that have left the window. An instant that is exactly per old still
// counts, so that the server sees the limit kept whichever ends of a span it includes.
func (w *window) slide(stamps *ring, now time.Duration) {
	for w.first < stamps.tail && now-stamps.at(w.first) > w.per {
		w.first++
	}
}

// room is how many requests may be ours in the window.
func (w *window) room(now time.Duration) int {
	if now-w.seen > w.per {
		return w.requests
	}
	return w.requests - w.withheld
}

// observe takes in that the server had so many requests left at that time, when it may have seen
// own of ours.
//
// With the server's limit equal to requests, withheld is limit - remaining - own: others' use. With
// another limit it is still right to have own + remaining and no more, whatever window the server
// means. An overtaken answer is not news; and as own also counts requests that the server has not
// seen yet, it hides others: for a while a smaller figure does not replace a greater one.
func (w *window) observe(remaining, own int, at time.Duration) {
	withheld := max(0, w.requests-remaining-own)
	if at >= w.seen && (withheld >= w.withheld || at-w.seen >= min(w.per, probeEvery)) {
		w.withheld, w.seen = withheld, at
	}
}

// ring holds, in order, the stamps of our latest slots: the instants by which the server has received
// their requests. One that may come earlier yet is in the future, never if it is not written. Indices
// only grow; head is the oldest that is kept.
type ring struct {
	buf        []time.Duration // its length is a power of two
	head, tail int
}

func (r *ring) at(i int) time.Duration { return r.buf[i&(len(r.buf)-1)] }

func (r *ring) set(i int, t time.Duration) { r.buf[i&(len(r.buf)-1)] = t }

// push adds the latest.
func (r *ring) push(t time.Duration) {
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

// move makes one stamp earlier.
func (r *ring) move(from, to time.Duration) {
	i := r.tail - 1
	for r.at(i) > from {
		i--
	}
	for ; i > r.head && r.at(i-1) > to; i-- {
		r.set(i, r.at(i-1))
	}
	r.set(i, to)
}
