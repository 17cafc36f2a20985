package transport

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// callBody is the caller's request body, which may be sent more than once and is closed exactly once.
type callBody struct {
	body    io.ReadCloser
	getBody func() (io.ReadCloser, error) // nil: up to max bytes that were read are kept
	max     int64

	reading sync.Mutex // held during body.Read, for which Close must not wait

	mu        sync.Mutex
	kept      []byte
	truncated bool        // more was read than is kept
	err       error       // how body ended
	failed    error       // why the latest Read of a body, or GetBody, failed
	first     attemptBody // part of this, to save an allocation
	last      *attemptBody
	open      int  // attemptBodies not closed yet
	final     bool // no further attempt: body is closed with the last attemptBody

	closed atomic.Bool
}

func newCallBody(req *http.Request, max int64) *callBody {
	if req.Body == nil || req.Body == http.NoBody {
		return nil
	}
	return &callBody{body: req.Body, getBody: req.GetBody, max: max}
}

// replayable reports whether the body can be sent again from its beginning.
func (p *callBody) replayable() bool {
	if p == nil || p.getBody != nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.truncated && (p.err == nil || p.err == io.EOF)
}

// next returns the body of the next sending. That of the sending before must be abandoned.
func (p *callBody) next(a *attempt) (*attemptBody, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := &p.first
	if p.last != nil {
		u = new(attemptBody)
	}
	u.attempt, u.p = a, p
	if p.getBody != nil && p.last != nil {
		body, err := p.getBody()
		if err != nil {
			p.failed = fmt.Errorf("GetBody of the request failed: %w", err)
			return nil, p.failed
		}
		u.copied = body
	}
	p.last = u
	p.open++
	return u, nil
}

// noteFailure notes how a Read ended.
func (p *callBody) noteFailure(err error) {
	if err != io.EOF {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.failed = err
	}
}

// failure returns why the caller's body could not be read, or nil.
func (p *callBody) failure() error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// abandon takes the body from the latest sending, whose pending Reads then fail. It reports false, and
// does nothing, if the body cannot be sent again.
func (p *callBody) abandon() bool {
	if p == nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.getBody == nil && p.truncated {
		return false
	}
	if p.last != nil {
		p.last.abandoned.Store(true)
	}
	return true
}

// interrupt closes the caller's body at once, to end a Read that waits for input.
func (p *callBody) interrupt() {
	if p == nil || p.closed.Load() {
		return
	}
	closed := make(chan struct{})
	go func() {
		p.update(func() { p.final, p.open = true, 0 })
		close(closed)
	}()
	select { // the body of a server's request waits in Close for its Read
	case <-closed:
	case <-time.After(10 * time.Millisecond):
	}
}

// finish is called when there is no further attempt.
func (p *callBody) finish() {
	if p != nil {
		p.update(func() { p.final = true })
	}
}

// update makes a change with p locked, and closes the caller's body if that is due then.
func (p *callBody) update(change func()) {
	p.mu.Lock()
	change()
	due := p.final && p.open <= 0
	p.mu.Unlock()
	if due && !p.closed.Swap(true) {
		p.body.Close()
	}
}

// attemptBody is the request body of one sending.
type attemptBody struct {
	attempt *attempt
	p       *callBody
	copied  io.ReadCloser // from GetBody; nil: the caller's own
	pos     int           // in kept

	abandoned, closed atomic.Bool
}

var errAbandoned = errors.New("the body belongs to another attempt")

func (u *attemptBody) Read(b []byte) (int, error) {
	if u.abandoned.Load() {
		return 0, errAbandoned
	}
	u.attempt.uploading()
	n, err := u.read(b)
	switch {
	case u.abandoned.Load():
		return 0, errAbandoned
	case err != nil:
		u.attempt.creditUpload()
		u.p.noteFailure(err)
	default:
		u.attempt.uploading()
	}
	return n, err
}

func (u *attemptBody) read(b []byte) (int, error) {
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
	if !p.truncated && int64(len(p.kept)+n) > p.max && !u.abandoned.Load() {
		p.truncated, p.kept, u.pos = true, nil, 0
	}
	if !p.truncated {
		p.kept = append(p.kept, b[:n]...)
		u.pos += n
	}
	return n, err
}

// Close closes the copy, and with the last attemptBody of the call the caller's body.
func (u *attemptBody) Close() error {
	if u.closed.Swap(true) {
		return nil
	}
	u.p.update(func() { u.p.open-- })
	if u.copied != nil {
		return u.copied.Close()
	}
	return nil
}

// timedBody is a response body whose silences are timed.
type timedBody struct {
	attempt *attempt
	io.ReadCloser
}

func (b *timedBody) Read(p []byte) (int, error) {
	if !b.attempt.call.returned && time.Now().UnixNano() >= b.attempt.call.deadline.Load() {
		return 0, os.ErrDeadlineExceeded // stop Rejected, drain and http.Client; the caller may read on
	}
	b.attempt.waitingSince.Store(b.attempt.call.clock())
	n, err := b.ReadCloser.Read(p)
	b.attempt.waitingSince.Store(0)
	return n, err
}

// returnedBody is the body of the returned response. Its end, or Close, ends the call.
type returnedBody struct{ timedBody }

func (b *returnedBody) Read(p []byte) (int, error) {
	n, err := b.timedBody.Read(p)
	if err != nil {
		if err != io.EOF {
			err = b.attempt.call.callError(redactServerText(err))
		}
		b.attempt.call.end()
	}
	return n, err
}

func (b *returnedBody) Close() error {
	err := b.timedBody.Close()
	b.attempt.call.end()
	return err
}

// upgraded is the connection after a 101 response. Close ends the call.
type upgraded struct {
	io.ReadWriteCloser
	attempt *attempt
}

func (u *upgraded) Close() error {
	err := u.ReadWriteCloser.Close()
	u.attempt.call.end()
	return err
}
