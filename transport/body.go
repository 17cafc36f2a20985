package transport

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// payload is the caller's request body, which may have to be sent more than once. It is closed
// exactly once.
type payload struct {
	body    io.ReadCloser
	getBody func() (io.ReadCloser, error) // nil: what is read is kept, up to max
	max     int64

	reading sync.Mutex // held over body.Read; Close must not wait for that

	mu     sync.Mutex
	kept   []byte
	lost   bool  // more was read than is kept
	err    error // how body ended
	last   *upload
	open   int  // uploads not closed yet
	over   bool // no further attempt: body is closed with its last upload
	closed bool
}

func newPayload(req *http.Request, max int64) *payload {
	if req.Body == nil || req.Body == http.NoBody {
		return nil
	}
	return &payload{body: req.Body, getBody: req.GetBody, max: max}
}

// replayable reports whether the body can be sent from its beginning again.
func (p *payload) replayable() bool {
	if p == nil || p.getBody != nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.lost && (p.err == nil || p.err == io.EOF)
}

// next gives the body of the next attempt. The one before must have been abandoned.
func (p *payload) next(c *call) (*upload, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := &upload{p: p, c: c}
	if p.getBody != nil && p.last != nil {
		body, err := p.getBody()
		if err != nil {
			return nil, err
		}
		u.copied = body
	}
	p.last = u
	p.open++
	return u, nil
}

// abandon takes the body from the last attempt, if it can be sent again, and reports whether it
// can. What that attempt was about to read does not change it any more.
func (p *payload) abandon() bool {
	if p == nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.getBody == nil && p.lost {
		return false
	}
	if p.last != nil {
		p.last.stale.Store(true)
	}
	return true
}

// interrupt closes the caller's body, which ends a Read that waits for input.
func (p *payload) interrupt() {
	if p == nil {
		return
	}
	p.mu.Lock()
	p.over, p.open = true, 0
	last := p.unneeded()
	p.mu.Unlock()
	if !last {
		return
	}
	closed := make(chan struct{})
	go func() { p.body.Close(); close(closed) }()
	select { // Close itself may wait for the Read, as that of a server's request body does
	case <-closed:
	case <-time.After(10 * time.Millisecond):
	}
}

// finish says that there will be no further attempt.
func (p *payload) finish() {
	if p == nil {
		return
	}
	p.mu.Lock()
	p.over = true
	last := p.unneeded()
	p.mu.Unlock()
	if last {
		p.body.Close()
	}
}

// unneeded reports, once, that nobody needs the caller's body any more: it is to be closed, without
// p.mu, which is held here.
func (p *payload) unneeded() bool {
	if p.closed || !p.over || p.open > 0 {
		return false
	}
	p.closed = true
	return true
}

// upload is the body of one attempt.
type upload struct {
	p      *payload
	c      *call
	copied io.ReadCloser // from GetBody; nil: the caller's own
	pos    int           // in what is kept
	stale  atomic.Bool
	closed bool
}

var errStale = errors.New("the body belongs to another attempt")

func (u *upload) Read(b []byte) (int, error) {
	if u.stale.Load() {
		return 0, errStale
	}
	u.c.flowing()
	n, err := u.read(b)
	switch {
	case u.stale.Load():
		return 0, errStale
	case err != nil:
		u.c.uploaded()
	default:
		u.c.flowing()
	}
	return n, err
}

func (u *upload) read(b []byte) (int, error) {
	p := u.p
	switch {
	case u.copied != nil:
		return u.copied.Read(b)
	case p.getBody != nil:
		return p.body.Read(b)
	}
	p.reading.Lock()
	defer p.reading.Unlock()
	p.mu.Lock()
	if u.pos < len(p.kept) {
		n := copy(b, p.kept[u.pos:])
		u.pos += n
		p.mu.Unlock()
		return n, nil
	}
	err := p.err
	p.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := p.body.Read(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
	if !p.lost && int64(len(p.kept)+n) > p.max && !u.stale.Load() {
		p.lost, p.kept, u.pos = true, nil, 0
	}
	if !p.lost {
		p.kept = append(p.kept, b[:n]...)
		u.pos += n
	}
	return n, err
}

// Close closes the copy, or, with the last upload of the call, the caller's body.
func (u *upload) Close() error {
	p := u.p
	p.mu.Lock()
	if u.closed {
		p.mu.Unlock()
		return nil
	}
	u.closed = true
	p.open--
	last := p.unneeded()
	p.mu.Unlock()
	if last {
		p.body.Close()
	}
	if u.copied != nil {
		return u.copied.Close()
	}
	return nil
}

// answer is the body of a response, whose silence is noted.
type answer struct {
	c *call
	io.ReadCloser
}

func (a *answer) Read(b []byte) (int, error) {
	if !a.c.handed && time.Now().UnixNano() >= a.c.deadline.Load() {
		return 0, os.ErrDeadlineExceeded // the rest is for the caller, if for anybody
	}
	a.c.silent.Store(a.c.clock())
	n, err := a.ReadCloser.Read(b)
	a.c.silent.Store(0)
	return n, err
}

// download is the body of the returned response: it ends the call.
type download struct{ answer }

func (d *download) Read(b []byte) (int, error) {
	n, err := d.answer.Read(b)
	if err != nil {
		if err != io.EOF {
			err = d.c.explain(unquoted(err))
		}
		d.c.end()
	}
	return n, err
}

func (d *download) Close() error {
	err := d.answer.Close()
	d.c.end()
	return err
}

// upgraded is the connection that a response of 101 has become: closing it ends the call.
type upgraded struct {
	io.ReadWriteCloser
	c *call
}

func (u *upgraded) Close() error {
	err := u.ReadWriteCloser.Close()
	u.c.end()
	return err
}
