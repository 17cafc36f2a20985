package redisstore

import "sync"

// An acquisition is a lock or a slot that an operation takes. It makes sure that none stays taken
// without its caller knowing: an attempt may take it after the caller has given up, or once more after
// the caller has released it. It is then released when the last attempt has ended.
type acquisition struct {
	mu          sync.Mutex
	running     int    // attempts
	unreported  int    // ended attempts that may have taken it, but whose result the caller does not have
	releaseLate func() // called after the last attempt if some are unreported; set once it is to be released
}

func (a *acquisition) attemptStarted() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running++
}

// attemptEnded counts an attempt that ended with err. Only with an error reply, or without a connection,
// has it taken nothing for sure.
func (a *acquisition) attemptEnded(err error) {
	a.mu.Lock()
	a.running--
	if err == nil || !isReply(err) && !isConnectError(err) {
		a.unreported++
	}
	release := a.releaseLate
	if a.running > 0 || a.unreported == 0 {
		release = nil
	}
	a.mu.Unlock()
	if release != nil {
		release()
	}
}

// resultReturned notes that the caller gets the result of an ended attempt.
func (a *acquisition) resultReturned() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unreported--
}

// release calls f if the caller has it, or if an attempt may have taken it all the same, and again if an
// attempt takes it later.
func (a *acquisition) release(taken bool, f func()) {
	a.mu.Lock()
	a.releaseLate = f
	now := taken || a.running == 0 && a.unreported > 0
	a.mu.Unlock()
	if now {
		f()
	}
}

func (a *acquisition) attemptsRunning() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.running > 0
}
