package yamldoc

import (
	"fmt"
	"slices"
	"time"

	"gopkg.in/yaml.v3"
)

// answerWithin is how long the files of one document have to answer, all together.
const answerWithin = 10 * time.Second

// A reading is a file that is being read. A mount that is gone, or a pipe, may never answer.
type reading struct {
	done chan struct{}
	text string
	err  error
}

// ReadAhead begins to read the files that n refers to, except in nodes to skip. A file that does not answer
// then takes no time from the others.
func (d *Document) ReadAhead(n Node, skip func(Node) bool) {
	if n.Missing() || skip(n) {
		return
	}
	switch value := deref(n.value); value.Kind {
	case yaml.ScalarNode:
		begin := func(path string) (string, error) { d.beginReading(path); return "-", nil }
		_, _, _ = expand(value.Value, sources{dir: d.dir, read: begin}) // decoding reports the error
	case yaml.SequenceNode:
		for _, v := range value.Content {
			d.ReadAhead(Node{value: v}, skip)
		}
	case yaml.MappingNode:
		for pair := range slices.Chunk(value.Content, 2) {
			d.ReadAhead(Node{Path: n.Path.key(pair[0].Value), Name: pair[0].Value, value: pair[1]}, skip)
		}
	}
}

func (d *Document) beginReading(path string) *reading {
	r := d.readings[path]
	if r == nil {
		r = &reading{done: make(chan struct{})}
		d.readings[path] = r
		go func() {
			r.text, r.err = d.read(path)
			close(r.done)
		}()
	}
	return r
}

// file is the content of a file, which is read once.
func (d *Document) file(path string) (string, error) {
	r := d.beginReading(path)
	late := time.After(time.Until(d.deadline))
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
