package textfile

import (
	"fmt"
	"time"
)

// answerWithin is how long the files of one [Files] have to answer, all together.
const answerWithin = 10 * time.Second

// Files reads files at the same time, each once. A mount that is gone, or a pipe, may never answer: then that
// file fails, and takes no time from the others. It is not safe for concurrent use.
type Files struct {
	read     func(path string) (string, error)
	deadline time.Time
	readings map[string]*reading
}

type reading struct {
	done chan struct{}
	text string
	err  error
}

// NewFiles makes a Files of read, usually [Read]. Files that do not answer within 10 s from now fail.
func NewFiles(read func(path string) (string, error)) *Files {
	return &Files{read, time.Now().Add(answerWithin), map[string]*reading{}}
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
	late := time.After(time.Until(f.deadline))
	select {
	case <-r.done:
	case <-late:
		select {
		case <-r.done: // it answered while another file was waited for
		default:
			return "", fmt.Errorf("%s does not answer", path)
		}
	}
	return r.text, r.err
}
