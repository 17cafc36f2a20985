package filestore

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

// A window's file has, in numbers of 8 bytes with the least significant first and times in
// microseconds since 1970:
//
//	windowFormat, whose last byte is the version
//	the number of processes and of slots, and the fields of windowFile up to last
//	a checksum of all that
//	processes: which asked lately; room for maxProcesses
//	slots: requests in flight; room for windowFile.room
//	stamps: when the server had received each of the last requests; a ring of windowFile.ring
//
// The stamps are in order: a slot that is released becomes a stamp of now, and one that is not
// becomes a stamp of its deadline before anything later is written. So a limit of N has room unless
// the Nth last request is in flight or its stamp is not old enough, and of the ring no more is read
// than one stamp for each limit.
//
// A process may be killed between two writes. So a stamp is written first, and counts with the
// header, which then has its slot no longer. Nothing is synced to the disk: an empty file, or one
// whose header is zero, as a power failure may leave them, is a new one.
const (
	windowFormat = "itsmauth window\x01"
	processesAt  = len(windowFormat) + 7*8
	processSize  = 2 * 8
	maxProcesses = 128
	slotsAt      = processesAt + maxProcesses*processSize
	slotSize     = 3 * 8
	stampSize    = 8
	// firstRead is all but the stamps, unless there are many slots.
	firstRead = 4096
	leastRoom = (firstRead - slotsAt) / slotSize
	// processLife is how long a process counts that does not ask any more.
	processLife = int64(time.Minute / time.Microsecond)
)

type process struct{ id, asked int64 }

type slot struct{ id, deadline, hold int64 }

// windowFile is an open file, all of it but the stamps in memory.
type windowFile struct {
	*os.File
	room, ring int64 // for so many slots and stamps
	written    int64 // how many stamps were ever written
	last       int64 // the last of them
	processes  []process
	slots      []slot
	buf        []byte
}

// update runs f, with the time, between reading the file and writing it.
func (w *windowFile) update(path string, limits []auth.Limit, f func(now int64) error) (err error) {
	if w.File, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	defer func() { w.Close() }() // grow may have opened another
	ring := int64(1)
	for _, l := range limits {
		ring = max(ring, int64(l.Requests))
	}
	if err = w.read(ring); err == nil && w.ring < ring {
		err = w.grow(w.room, ring)
	}
	now := time.Now().UnixMicro()
	if err == nil {
		err = w.advance(now)
	}
	if err == nil {
		err = f(now)
	}
	if err == nil {
		err = w.write()
	}
	return err
}

// read reads all but the stamps. A new file gets the ring given.
func (w *windowFile) read(ring int64) error {
	w.processes, w.slots = w.processes[:0], w.slots[:0]
	w.buf = slices.Grow(w.buf[:0], firstRead)[:firstRead]
	n, err := w.ReadAt(w.buf, 0)
	if err != nil && err != io.EOF {
		return err
	}
	b := w.buf[:n]
	version := len(windowFormat) - 1
	switch {
	case n == 0, n >= processesAt && strings.Trim(string(b[:processesAt]), "\x00") == "":
		w.room, w.ring, w.written, w.last = int64(leastRoom), ring, 0, 0
		return nil
	case n <= version || string(b[:version]) != windowFormat[:version]:
		return fmt.Errorf("%s is not a file of itsmauth; move it away", w.Name())
	case b[version] > windowFormat[version]:
		return fmt.Errorf("%s was written by a newer itsmauth; upgrade", w.Name())
	case n < processesAt || binary.LittleEndian.Uint64(b[processesAt-8:]) != sum(b):
		return w.damaged()
	}
	r := numbers(b[len(windowFormat):])
	processes, slots := r.next(), r.next()
	w.room, w.ring, w.written, w.last = r.next(), r.next(), r.next(), r.next()
	if end := slotsAt + int(slots)*slotSize; end > n {
		b = slices.Grow(b, end-n)[:end]
		if _, err := w.ReadAt(b[n:], int64(n)); err == io.EOF {
			return w.damaged()
		} else if err != nil {
			return err
		}
		w.buf = b
	}
	for r = numbers(b[processesAt:]); processes > 0; processes-- {
		w.processes = append(w.processes, process{r.next(), r.next()})
	}
	for r = numbers(b[slotsAt:]); slots > 0; slots-- {
		w.slots = append(w.slots, slot{r.next(), r.next(), r.next()})
	}
	return nil
}

func (w *windowFile) damaged() error {
	return fmt.Errorf("%s is damaged; remove it to count the requests anew", w.Name())
}

// write writes all but the stamps.
func (w *windowFile) write() error {
	b := append(w.buf[:0], windowFormat...)
	b = appendNumbers(b, int64(len(w.processes)), int64(len(w.slots)), w.room, w.ring, w.written, w.last)
	b = binary.LittleEndian.AppendUint64(b, sum(b))
	for _, p := range w.processes {
		b = appendNumbers(b, p.id, p.asked)
	}
	b = append(b, make([]byte, slotsAt-len(b))...)
	for _, s := range w.slots {
		b = appendNumbers(b, s.id, s.deadline, s.hold)
	}
	w.buf = b
	_, err := w.WriteAt(b, 0)
	return err
}

// sum is the checksum of what is before it in a file that begins as b does.
func sum(b []byte) uint64 { return uint64(crc32.ChecksumIEEE(b[:processesAt-8])) }

type numbers []byte

func (n *numbers) next() int64 {
	v := binary.LittleEndian.Uint64(*n)
	*n = (*n)[8:]
	return int64(v)
}

func appendNumbers(b []byte, numbers ...int64) []byte {
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint64(b, uint64(n))
	}
	return b
}

// stampAt is where the stamp is that was the nth to be written.
func (w *windowFile) stampAt(n int64) int64 {
	return int64(slotsAt) + w.room*slotSize + n%w.ring*stampSize
}

// stamp reads the nth stamp that was written. One that a power failure took is of 1970.
func (w *windowFile) stamp(n int64) (int64, error) {
	var b [stampSize]byte
	_, err := w.ReadAt(b[:], w.stampAt(n))
	if err == io.EOF {
		err = nil
	}
	return int64(binary.LittleEndian.Uint64(b[:])), err
}

// setStamp writes the nth stamp.
func (w *windowFile) setStamp(n, at int64) error {
	var b [stampSize]byte
	binary.LittleEndian.PutUint64(b[:], uint64(at))
	_, err := w.WriteAt(b[:], w.stampAt(n))
	return err
}

// received adds a stamp.
func (w *windowFile) received(at int64) error {
	err := w.setStamp(w.written, at)
	if err == nil {
		w.written++
		w.last = at
	}
	return err
}

// stamps is how many stamps there are.
func (w *windowFile) stamps() int64 { return min(w.written, w.ring) }

// advance makes stamps of the slots whose deadline has passed. After the clock was set back, it first
// brings back what lies too far in the future.
func (w *windowFile) advance(now int64) error {
	if w.last > now {
		first := w.written
		for ; first > w.written-w.stamps(); first-- {
			if at, err := w.stamp(first - 1); err != nil {
				return err
			} else if at <= now {
				break
			}
		}
		for n := first; n < w.written; n++ {
			if err := w.setStamp(n, now); err != nil {
				return err
			}
		}
		w.last = now
	}
	for i := range w.processes {
		w.processes[i].asked = min(w.processes[i].asked, now)
	}
	for i, s := range w.slots {
		w.slots[i].deadline = min(s.deadline, now+s.hold)
	}
	slices.SortFunc(w.slots, func(a, b slot) int { return cmp.Compare(a.deadline, b.deadline) })
	lapsed := 0
	for _, s := range w.slots {
		if s.deadline > now {
			break
		}
		if err := w.received(s.deadline); err != nil {
			return err
		}
		lapsed++
	}
	w.slots = slices.Delete(w.slots, 0, lapsed)
	return nil
}

// meet notes that a process asks, and returns how many asked lately.
func (w *windowFile) meet(id, now int64) int {
	w.processes = slices.DeleteFunc(w.processes, func(p process) bool { return p.id == id || p.asked <= now-processLife })
	if len(w.processes) == maxProcesses {
		w.processes = slices.Delete(w.processes, 0, 1) // it asked before all others
	}
	w.processes = append(w.processes, process{id, now})
	return len(w.processes)
}

// wait returns how long it is, at the least, until each limit has room for a request; 0 is now.
func (w *windowFile) wait(limits []auth.Limit, now int64) (wait int64, err error) {
	for _, l := range limits {
		nth := int64(l.Requests - len(w.slots))
		if nth > w.written {
			continue
		}
		at := now // in flight, it was received by now at the earliest
		if nth > 0 {
			if at, err = w.stamp(w.written - nth); err != nil {
				return 0, err
			}
		}
		wait = max(wait, at+l.Per.Microseconds()+1-now)
	}
	return wait, nil
}

// find returns the index of a slot in flight, or -1.
func (w *windowFile) find(id int64) int {
	return slices.IndexFunc(w.slots, func(s slot) bool { return s.id == id })
}

// take puts a slot in flight.
func (w *windowFile) take(s slot) error {
	if int64(len(w.slots)) == w.room {
		if err := w.grow(2*w.room, w.ring); err != nil {
			return err
		}
	}
	w.slots = append(w.slots, s)
	return nil
}

// release ends a slot's flight. A slot that is not in flight any more is counted anew if it was sent.
func (w *windowFile) release(id int64, sent bool, now int64) error {
	if i := w.find(id); i >= 0 {
		w.slots = slices.Delete(w.slots, i, i+1)
	}
	if sent {
		return w.received(now)
	}
	return nil
}

// grow makes room for more slots, or a longer ring, in a new file that takes the place of this one.
func (w *windowFile) grow(room, ring int64) error {
	path := w.Name()
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	grown := windowFile{File: f, room: room, ring: ring, processes: w.processes, slots: w.slots}
	for n := w.written - w.stamps(); n < w.written && err == nil; n++ {
		var at int64
		if at, err = w.stamp(n); err == nil {
			err = grown.received(at)
		}
	}
	if err == nil {
		err = grown.write()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	w.Close() // Windows replaces no file that is open
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		grown.File, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err == nil {
		*w = grown
	}
	return err
}
