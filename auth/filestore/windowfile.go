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

// A window's file has these parts. Numbers have 8 bytes, little-endian; times are in microseconds since
// 1970.
//
//	header: windowFormat, whose last byte is the version; the number of processes and of slots; the
//	    fields of windowFile from maxSlots to last; a checksum of all that
//	processes: those that called Take lately; space for maxProcesses
//	slots: requests in flight; space for windowFile.maxSlots
//	stamps: when the server received the last requests; a ring of windowFile.maxStamps
//
// The stamps are sorted. A slot that is released becomes a stamp of that time. A slot that expires
// becomes a stamp of its deadline, before a later stamp is written. So a limit of N is reached if the
// Nth last request is in flight or its stamp is too new, and only one stamp is read for each limit.
//
// A process may be killed between two writes. So a stamp is written before the header, which counts it
// and drops its slot. The file is not synced. A power failure may leave it empty, or its header zero:
// that is a new file.
const (
	windowFormat = "itsmauth window\x01"
	processesAt  = len(windowFormat) + 7*8
	processSize  = 2 * 8
	maxProcesses = 128
	slotsAt      = processesAt + maxProcesses*processSize
	slotSize     = 3 * 8
	stampSize    = 8
	// firstRead is the size of all but the stamps, unless there are more than minSlots slots.
	firstRead = 4096
	minSlots  = (firstRead - slotsAt) / slotSize
	// processTTL is how long a process counts after its last Take.
	processTTL = int64(time.Minute / time.Microsecond)
)

type process struct{ id, lastTake int64 }

type slot struct{ id, deadline, hold int64 }

// A windowFile is a file, open and locked, with all but the stamps in memory.
type windowFile struct {
	*os.File
	opened              os.FileInfo
	maxSlots, maxStamps int64
	written             int64 // number of stamps that were ever written
	last                int64 // the last stamp
	processes           []process
	slots               []slot
	buf                 []byte
}

// update reads the file, calls f with the time, and writes the file.
func (w *windowFile) update(limits []auth.Limit, f func(now int64) error) error {
	needed := int64(1) // stamps
	for _, l := range limits {
		needed = max(needed, int64(l.Requests))
	}
	err := w.read(needed)
	if err == nil && w.maxStamps < needed {
		err = w.grow(0, needed)
	}
	now := time.Now().UnixMicro()
	if err == nil {
		err = w.expireSlots(now)
	}
	if err == nil {
		err = f(now)
	}
	if err == nil {
		err = w.write()
	}
	return err
}

// read reads all but the stamps. A new file gets maxStamps.
func (w *windowFile) read(maxStamps int64) error {
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
		w.maxSlots, w.maxStamps, w.written, w.last = int64(minSlots), maxStamps, 0, 0
		return nil
	case n <= version || string(b[:version]) != windowFormat[:version]:
		return fmt.Errorf("%s was not written by itsmauth; move it away", w.Name())
	case b[version] > windowFormat[version]:
		return fmt.Errorf("%s was written by a newer itsmauth; upgrade", w.Name())
	case n < processesAt || binary.LittleEndian.Uint64(b[processesAt-8:]) != sum(b):
		return w.damaged()
	}
	r := numbers(b[len(windowFormat):])
	processes, slots := r.next(), r.next()
	w.maxSlots, w.maxStamps, w.written, w.last = r.next(), r.next(), r.next(), r.next()
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
	return fmt.Errorf("%s is damaged; remove it to count requests anew", w.Name())
}

// write writes all but the stamps.
func (w *windowFile) write() error {
	b := append(w.buf[:0], windowFormat...)
	b = appendNumbers(b, int64(len(w.processes)), int64(len(w.slots)), w.maxSlots, w.maxStamps, w.written, w.last)
	b = binary.LittleEndian.AppendUint64(b, sum(b))
	for _, p := range w.processes {
		b = appendNumbers(b, p.id, p.lastTake)
	}
	b = append(b, make([]byte, slotsAt-len(b))...)
	for _, s := range w.slots {
		b = appendNumbers(b, s.id, s.deadline, s.hold)
	}
	w.buf = b
	_, err := w.WriteAt(b, 0)
	return err
}

// sum is the header's checksum.
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

// stampAt is the offset of the nth stamp that was ever written.
func (w *windowFile) stampAt(n int64) int64 {
	return int64(slotsAt) + w.maxSlots*slotSize + n%w.maxStamps*stampSize
}

// stamp reads the nth stamp. A stamp that was lost in a power failure is 0.
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

// addStamp adds a stamp of at. Its caller must then write the header.
func (w *windowFile) addStamp(at int64) error {
	err := w.setStamp(w.written, at)
	if err == nil {
		w.written++
		w.last = at
	}
	return err
}

// stamps is the number of stamps in the file.
func (w *windowFile) stamps() int64 { return min(w.written, w.maxStamps) }

// expireSlots turns slots whose deadline has passed into stamps. If the clock was set back, it first
// moves times that are too far in the future.
func (w *windowFile) expireSlots(now int64) error {
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
		w.processes[i].lastTake = min(w.processes[i].lastTake, now)
	}
	for i, s := range w.slots {
		w.slots[i].deadline = min(s.deadline, now+s.hold)
	}
	slices.SortFunc(w.slots, func(a, b slot) int { return cmp.Compare(a.deadline, b.deadline) })
	expired := 0
	for _, s := range w.slots {
		if s.deadline > now {
			break
		}
		if err := w.addStamp(s.deadline); err != nil {
			return err
		}
		expired++
	}
	w.slots = slices.Delete(w.slots, 0, expired)
	return nil
}

// countProcess notes a Take of process id, and returns the number of processes.
func (w *windowFile) countProcess(id, now int64) int {
	w.processes = slices.DeleteFunc(w.processes, func(p process) bool { return p.id == id || p.lastTake <= now-processTTL })
	if len(w.processes) == maxProcesses {
		w.processes = slices.Delete(w.processes, 0, 1) // the oldest
	}
	w.processes = append(w.processes, process{id, now})
	return len(w.processes)
}

// wait returns the time until all limits allow a request, if those in flight are received now. 0 is now.
func (w *windowFile) wait(limits []auth.Limit, now int64) (wait int64, err error) {
	for _, l := range limits {
		nth := int64(l.Requests - len(w.slots))
		if nth > w.written {
			continue
		}
		at := now // the nth last request is in flight and is received now at the earliest
		if nth > 0 {
			if at, err = w.stamp(w.written - nth); err != nil {
				return 0, err
			}
		}
		wait = max(wait, at+l.Per.Microseconds()+1-now)
	}
	return wait, nil
}

// find returns the index of the slot id, or -1.
func (w *windowFile) find(id int64) int {
	return slices.IndexFunc(w.slots, func(s slot) bool { return s.id == id })
}

// addSlot adds a request in flight.
func (w *windowFile) addSlot(s slot) error {
	if int64(len(w.slots)) == w.maxSlots {
		if err := w.grow(w.maxSlots, w.maxStamps); err != nil {
			return err
		}
	}
	w.slots = append(w.slots, s)
	return nil
}

// release removes the slot id. If the request was sent it adds a stamp, even if the slot has expired and
// has one already.
func (w *windowFile) release(id int64, sent bool, now int64) error {
	if i := w.find(id); i >= 0 {
		w.slots = slices.Delete(w.slots, i, i+1)
	}
	if sent {
		return w.addStamp(now)
	}
	return nil
}

// grow moves the stamps to where there is space for more of them, and for more slots before them. Its
// caller must then write the header. Until then, the file has the old stamps.
func (w *windowFile) grow(moreSlots, maxStamps int64) error {
	grown := *w
	grown.maxSlots += max(moreSlots, (w.maxStamps*stampSize+slotSize-1)/slotSize)
	grown.maxStamps, grown.written = maxStamps, 0
	for n := w.written - w.stamps(); n < w.written; n++ {
		at, err := w.stamp(n)
		if err == nil {
			err = grown.addStamp(at)
		}
		if err != nil {
			return err
		}
	}
	*w = grown
	return nil
}
