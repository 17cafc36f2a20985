package transport

import (
	"sort"
	"time"
)

// window is one limit: in no span of per does the server see more than requests. Times are counted
// as [Limiter] counts them.
type window struct {
	requests int
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
	if w.first < stamps.tail && now-stamps.at(w.first) > w.per {
		w.first += 1 + sort.Search(stamps.tail-w.first-1, func(i int) bool {
			return now-stamps.at(w.first+1+i) <= w.per
		})
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

// ring holds, in order, the latest instants at which the server may have received our requests.
// Indices only grow; head is the oldest that is kept.
type ring struct {
	buf        []time.Duration // its length is a power of two
	head, tail int
}

func (r *ring) at(i int) time.Duration { return r.buf[i&(len(r.buf)-1)] }

func (r *ring) push(t time.Duration) {
	if r.tail-r.head == len(r.buf) {
		buf := make([]time.Duration, max(8, 2*len(r.buf)))
		for i := r.head; i < r.tail; i++ {
			buf[i&(len(buf)-1)] = r.at(i)
		}
		r.buf = buf
	}
	r.buf[r.tail&(len(r.buf)-1)] = t
	r.tail++
}
