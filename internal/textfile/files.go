package textfile

import (
	"fmt"
	"time"
)

// The files of one [Files] have ticks of this length to answer, all together: 10 s. A process that does not run
// for a time, because it was stopped or the machine is overloaded, misses ticks, and these do not count.
const (
	tick  = 50 * time.Millisecond
	ticks = int(10 * time.Second / tick)
)

// Files reads files at the same time, each once. A mount that is gone, or a pipe, may never answer: then that
// file fails, and takes no time from the others. It is not safe for concurrent use.
type Files struct {
	read     func(path string) (string, error)
	left     int // ticks
	readings map[string]*reading
}

type reading struct {
	done chan struct{}
	text string
	err  error
}

// NewFiles makes a Files of read, usually [Read]. Files for which Read has waited for 10 s fail.
func NewFiles(read func(path string) (string, error)) *Files {
	return &Files{read, ticks, map[string]*reading{}}
}

// Begin begins to read a file.
func (f *Files) Begin(path string) { f.begin(path) }

func (f *Files) begin(path string) *reading {
	r := f.readings[path]
	if r == nil {
		r = &reading{done: make(chan struct{})}
		f.readings[path] = r
		go func() {
			r.text, r.err = f.read(path)
			close(r.done)
		}()
	}
	return r
}

// Read returns the content of a file.
func (f *Files) Read(path string) (string, error) {
	r := f.begin(path)
	t := time.NewTicker(tick)
	defer t.Stop()
	for ; f.left > 0; f.left-- {
		select {
		case <-r.done:
			return r.text, r.err
		case <-t.C:
		}
	}
	select {
	case <-r.done:
		return r.text, r.err
	default:
		return "", fmt.Errorf("%s does not answer", path)
	}
}
