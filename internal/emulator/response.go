package emulator

import (
	"bufio"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net"
	"net/http"
)

// A Response is the [http.ResponseWriter] of hooks and products. It records the status in the Request
// before it sends it.
type Response struct {
	http.ResponseWriter
	// Request is the request as it was received.
	Request *Request

	front    *Front
	limited  bool   // a token request or an API call
	hold     func() // before the first byte, or nil
	hijacked bool
}

// Throttled reports whether Throttle applies to this request. If so it counts the request and sets
// Retry-After; the caller must respond with 429. Only API calls and token requests are throttled.
func (w *Response) Throttled() bool {
	f := w.front
	f.mu.Lock()
	defer f.mu.Unlock()
	if !w.limited || f.throttle <= 0 {
		return false
	}
	f.throttle--
	f.product.Stats.Throttled++
	if f.retryAfter != "" {
		w.Header().Set("Retry-After", f.retryAfter)
	}
	return true
}

// WriteHeader implements [http.ResponseWriter].
func (w *Response) WriteHeader(status int) {
	if w.hold != nil {
		w.hold()
		w.hold = nil
	}
	w.note(status)
	w.ResponseWriter.WriteHeader(status)
}

func (w *Response) note(status int) {
	w.front.mu.Lock()
	defer w.front.mu.Unlock()
	if w.Request.Status == 0 && status >= 200 {
		w.Request.Status = status
	}
}

// begin sends status 200 if no status was sent.
func (w *Response) begin() {
	if w.Request.Status == 0 {
		w.WriteHeader(http.StatusOK)
	}
}

// Write implements [http.ResponseWriter].
func (w *Response) Write(b []byte) (int, error) {
	w.begin()
	return w.ResponseWriter.Write(b)
}

// Flush implements [http.Flusher].
func (w *Response) Flush() {
	w.begin()
	http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack implements [http.Hijacker]. It returns the connection that the listener accepted, so that a hook
// can reset a [net.TCPConn].
func (w *Response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	w.hijacked = err == nil
	if own, ok := c.(*conn); ok {
		c = own.Conn
	}
	return c, rw, err
}

// Unwrap is for [http.ResponseController].
func (w *Response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteJSON responds with v as JSON.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

// NewToken makes an opaque token: 44 characters of base64, of which some need escaping.
func NewToken() string {
	b := make([]byte, 32)
	rand.Read(b)
	return base64.StdEncoding.EncodeToString(b)
}
