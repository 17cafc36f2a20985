//go:build unix

package filestore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/itsmauth/itsmauth/auth"
)

const (
	helperEnv  = "ITSMAUTH_FILESTORE_HELPER" // the helper that the test binary runs instead of tests
	nobody     = 65534
	increments = 20
)

// shortBeat is the beat in tests that use real time.
const shortBeat = 100 * time.Millisecond

var helpers = map[string]func(s *store) error{
	"save":      helpSave,
	"increment": helpIncrement,
	"compete":   helpCompete,
	"full":      helpFull,
	"read-only": helpReadOnly,
	"hold":      helpHold,
	"send":      helpSend,
	"take":      helpTake,
}

func TestMain(m *testing.M) {
	if help := foreignHelpers[os.Getenv(helperEnv)]; help != nil {
		if err := help(os.Args[1:]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	help, ok := helpers[os.Getenv(helperEnv)]
	if !ok {
		os.Exit(m.Run())
	}
	if os.Getenv(helperEnv) == "read-only" && os.Geteuid() == 0 {
		if err := syscall.Setuid(nobody); err != nil { // root can write to read-only files
			fmt.Println(err)
			os.Exit(1)
		}
	}
	s, err := Open(Config{Path: os.Args[1]})
	if err == nil {
		s := s.(*store)
		s.beat = shortBeat
		err = help(s)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func helper(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+name, "GORACE=atexit_sleep_ms=0") // or each takes a second to exit
	return cmd
}

// pages returns data of several disk blocks, so that a partial write is detected.
func pages(version uint64) string { return strings.Repeat(fmt.Sprintf("%d+/=&%% ", version), 1<<10) }

// helpSave saves until it is killed, and prints each version after saving it.
func helpSave(s *store) error {
	r, err := s.Load(context.Background(), "k")
	for err == nil {
		r.Data = []byte(pages(r.Version + 1))
		if err = s.Save(context.Background(), "k", r); err == nil {
			r.Version++
			fmt.Println(r.Version)
		}
	}
	return err
}

func TestKilledProcesses(t *testing.T) {
	t.Parallel()
	killProcesses(t, 10)
}

// killProcesses kills processes while they save, in two directories at a time. Each time the record must
// be complete, and have the version that the process printed last or the next one.
func killProcesses(t *testing.T, kills int) {
	for _, lane := range []string{"a", "b"} {
		t.Run(lane, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := open(t, dir)
			var saved, unsaid, torn int
			for range kills {
				said := killOne(t, dir)
				r, err := s.Load(t.Context(), "k")
				if err != nil {
					t.Fatalf("after a kill: %v", err)
				}
				if r.Version != said && r.Version != said+1 || string(r.Data) != pages(r.Version) {
					t.Fatalf("after a kill that followed version %d, the record is version %d with %d bytes", said, r.Version, len(r.Data))
				}
				saved = int(r.Version)
				unsaid += int(r.Version - said)
				leftovers, err := filepath.Glob(filepath.Join(dir, "*.tmp"))
				if err != nil || len(leftovers) > 1 {
					t.Fatalf("leftovers of several processes: %q, %v", leftovers, err)
				}
				torn += len(leftovers)
			}
			t.Logf("%d kills in %d saves: %d with a temporary file left, %d between the rename and the report", kills, saved, torn, unsaid)
			r, err := s.Load(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			save(t, s, "k", r.Version, "after")
			want(t, s, "k", r.Version+1, "after")
			if leftovers, _ := filepath.Glob(filepath.Join(dir, "*.tmp")); len(leftovers) > 0 {
				t.Errorf("leftovers after a save: %q", leftovers)
			}
		})
	}
}

// killOne kills a saving process at a random moment and returns the last version it printed.
func killOne(t *testing.T, dir string) (said uint64) {
	t.Helper()
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	cmd := helper(ctx, "save", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	for first := true; ; first = false {
		line, err := lines.ReadString('\n')
		if err != nil {
			break
		}
		if said, err = strconv.ParseUint(strings.TrimSpace(line), 10, 64); err != nil {
			t.Fatalf("the process failed: %s", line)
		}
		if first {
			time.AfterFunc(rand.N(15*time.Millisecond), kill)
		}
	}
	if cmd.Wait(); cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL || said == 0 {
		t.Fatalf("the process ended by itself: %v", cmd.ProcessState)
	}
	return said
}

func add(r auth.Record) auth.Record {
	n, _ := strconv.Atoi(string(r.Data))
	r.Data = strconv.AppendInt(nil, int64(n+1), 10)
	return r
}

// helpIncrement increments a counter with the lock, so that no save conflicts.
func helpIncrement(s *store) error {
	for range increments {
		unlock, err := s.Lock(context.Background(), "k")
		if err != nil {
			return err
		}
		r, err := s.Load(context.Background(), "k")
		if err == nil {
			err = s.Save(context.Background(), "k", add(r))
		}
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// helpCompete increments a counter without the lock, and retries after each conflict.
func helpCompete(s *store) error {
	for done := 0; done < increments; {
		r, err := s.Load(context.Background(), "k")
		if err == nil {
			err = s.Save(context.Background(), "k", add(r))
		}
		switch {
		case err == nil:
			done++
		case !errors.Is(err, auth.ErrConflict):
			return err
		}
	}
	return nil
}

func TestManyProcesses(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"increment", "compete"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			const processes = 8
			dir := t.TempDir()
			var wg sync.WaitGroup
			for range processes {
				wg.Go(func() {
					if out, err := helper(t.Context(), mode, dir).CombinedOutput(); err != nil {
						t.Errorf("%v: %s", err, out)
					}
				})
			}
			wg.Wait()
			want(t, open(t, dir), "k", processes*increments, strconv.Itoa(processes*increments))
		})
	}
}

// helpHold holds the lock until its standard input ends, and then saves the record that it had read.
func helpHold(s *store) error {
	unlock, err := s.Lock(context.Background(), "k")
	if err != nil {
		return err
	}
	defer unlock()
	fmt.Println("locked")
	fmt.Scanln()
	return s.Save(context.Background(), "k", auth.Record{Data: []byte("of the holder")})
}

// hold starts a process that holds the lock.
func hold(t *testing.T, dir string) (cmd *exec.Cmd, goOn io.Closer, out *bufio.Reader) {
	t.Helper()
	cmd = helper(t.Context(), "hold", dir)
	goOn, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out = bufio.NewReader(stdout)
	if line, err := out.ReadString('\n'); line != "locked\n" {
		t.Fatalf("the process failed: %s, %v", line, err)
	}
	return cmd, goOn, out
}

func kill(t *testing.T, cmd *exec.Cmd, signal syscall.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	if signal == syscall.SIGKILL {
		cmd.Wait()
	}
}

func TestStoppedHolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd, goOn, out := hold(t, dir)
	kill(t, cmd, syscall.SIGSTOP)
	s := beating(t, dir, shortBeat)
	begun := time.Now()
	unlock, err := s.Lock(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < takeoverBeats*shortBeat {
		t.Errorf("the stopped process was passed over after %v", took)
	}
	save(t, s, "k", 0, "of the next")
	unlock()
	kill(t, cmd, syscall.SIGCONT)
	goOn.Close()
	if line, _ := out.ReadString('\n'); !strings.HasPrefix(line, auth.ErrConflict.Error()) {
		t.Errorf("the stopped process saved with %q, want ErrConflict", line)
	}
	cmd.Wait()
	want(t, s, "k", 1, "of the next")
	s.beat = time.Hour // so that a wait for KEY.alive would fail the test
	if unlock = tryLock(t, s, 1); unlock == nil {
		t.Fatal("the lock is not free after the process has ended")
	}
	unlock()
}

func TestKilledHolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd, _, _ := hold(t, dir)
	kill(t, cmd, syscall.SIGKILL)
	if unlock := tryLock(t, beating(t, dir, time.Hour), 0); unlock == nil {
		t.Error("the lock of a killed process is not free at once")
	} else {
		unlock()
	}
}

// A process that took over from a stopped one is killed, while the stopped one still has its lock.
func TestKilledNextHolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	defer stopped(t, dir, "k.lock", "of the stopped")()
	cmd, _, _ := hold(t, dir)
	kill(t, cmd, syscall.SIGKILL)
	unlock, err := beating(t, dir, shortBeat).Lock(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// senders returns the window of send's processes. Its hold is long, because they may wait for long
// between Take and Release.
func senders(s auth.Store, per time.Duration) (auth.Window, auth.Limit) {
	limit := auth.Limit{Requests: 20, Per: per}
	return windowOf(s, time.Hour, limit), limit
}

// helpSend sends at full speed until it is killed, and prints the time of each request.
func helpSend(s *store) error {
	per, err := time.ParseDuration(os.Args[2])
	if err != nil {
		return err
	}
	w, _ := senders(s, per)
	for n := 0; ; n++ {
		id := fmt.Sprint(os.Getpid(), n)
		wait, _, err := w.Take(context.Background(), id)
		if err != nil {
			return err
		}
		if wait > 0 {
			time.Sleep(wait)
			continue
		}
		fmt.Println(time.Now().UnixMicro())
		w.Release(id, true)
	}
}

// send runs a process that sends until ctx ends, and calls sent for each request.
func send(ctx context.Context, t *testing.T, dir string, per time.Duration, sent func(time.Time)) {
	cmd := helper(ctx, "send", dir, per.String())
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Error(err)
		return
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		us, err := strconv.ParseInt(lines.Text(), 10, 64)
		if err != nil {
			t.Errorf("the process failed: %s", lines.Text())
		}
		sent(time.UnixMicro(us))
	}
	cmd.Wait()
}

// sendAll runs processes that together make that many requests at 20 a second. The test fails if any
// second has more. It returns how long that took.
func sendAll(t *testing.T, processes, requests int) time.Duration {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := t.TempDir()
	var mu sync.Mutex
	var sent []time.Time
	var wg sync.WaitGroup
	for range processes {
		wg.Go(func() {
			send(ctx, t, dir, time.Second, func(at time.Time) {
				mu.Lock()
				defer mu.Unlock()
				if sent = append(sent, at); len(sent) == requests {
					cancel()
				}
			})
		})
	}
	wg.Wait()
	if len(sent) < requests {
		t.Fatalf("%d requests, want %d", len(sent), requests)
	}
	_, limit := senders(open(t, dir), time.Second)
	checkLimit(t, sent, limit)
	return sent[requests-1].Sub(sent[0])
}

func TestWindowOfProcesses(t *testing.T) {
	t.Parallel()
	sendAll(t, 8, 60)
}

func TestWindowOfKilledSenders(t *testing.T) {
	t.Parallel()
	killSenders(t, 5)
}

// killSenders kills processes while they send. The window must stay valid, and the limit must hold.
func killSenders(t *testing.T, kills int) {
	const per = 10 * time.Millisecond
	dir := t.TempDir()
	var sent []time.Time
	for range kills {
		ctx, cancel := context.WithCancel(t.Context())
		first := true
		send(ctx, t, dir, per, func(at time.Time) {
			if sent = append(sent, at); first {
				time.AfterFunc(rand.N(15*time.Millisecond), cancel)
			}
			first = false
		})
		cancel()
	}
	w, limit := senders(open(t, dir), per)
	checkLimit(t, sent, limit)
	if _, _, err := w.Take(t.Context(), "after"); err != nil {
		t.Error(err)
	}
}

// helpTake takes the only slot and does not release it.
func helpTake(s *store) error {
	fmt.Println(time.Now().UnixMicro())
	wait, _, err := single(s).Take(context.Background(), "of the killed")
	fmt.Println(wait, err)
	fmt.Scanln()
	return err
}

const singleHold, singlePer = 500 * time.Millisecond, 100 * time.Millisecond

func single(s auth.Store) auth.Window {
	return windowOf(s, singleHold, auth.Limit{Requests: 1, Per: singlePer})
}

func TestWindowOfKilledProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := helper(t.Context(), "take", dir)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var us int64
	var wait, failed string
	if n, err := fmt.Fscan(out, &us, &wait, &failed); n != 3 || wait != "0s" || failed != "<nil>" {
		t.Fatalf("the process waits for %s, %s, %v", wait, failed, err)
	}
	kill(t, cmd, syscall.SIGKILL)
	w := single(open(t, dir))
	for {
		wait, _, err := w.Take(t.Context(), "next")
		if err != nil {
			t.Fatal(err)
		}
		if wait == 0 {
			break
		}
		time.Sleep(wait)
	}
	if after := time.Since(time.UnixMicro(us)); after <= singleHold+singlePer {
		t.Errorf("the slot of the killed process came back after %v", after)
	}
}

// helpFull limits the size of files, so that a write fails as on a full disk.
func helpFull(s *store) error {
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 4096, Max: 4096}); err != nil {
		return err
	}
	return s.Save(context.Background(), "k", auth.Record{Version: 1, Data: []byte(pages(2))})
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	save(t, s, "k", 0, pages(1))
	out, err := helper(t.Context(), "full", dir).CombinedOutput()
	path := filepath.Join(dir, "k.json")
	if err == nil || !strings.HasPrefix(string(out), auth.ErrStore.Error()+": "+path+" is unchanged: write ") ||
		!strings.Contains(string(out), syscall.EFBIG.Error()) {
		t.Errorf("Save: %v, %s", err, out)
	}
	want(t, s, "k", 1, pages(1))
	if leftovers, _ := filepath.Glob(filepath.Join(dir, "*.tmp")); len(leftovers) > 0 {
		t.Errorf("leftovers: %q", leftovers)
	}
	save(t, s, "k", 1, pages(2))
}

// helpReadOnly succeeds if all operations that write fail, and those that read do not.
func helpReadOnly(s *store) error {
	ctx := context.Background()
	_, lock := s.Lock(ctx, "new")
	for op, err := range map[string]error{
		"Save":   s.Save(ctx, "k", auth.Record{Version: 1, Data: []byte("new")}),
		"first":  s.Save(ctx, "new", auth.Record{Data: []byte("new")}),
		"Delete": s.Delete(ctx, "k", 1),
		"Lock":   lock,
	} {
		if !errors.Is(err, auth.ErrStore) || !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), os.Args[1]) {
			return fmt.Errorf("%s: %v", op, err)
		}
	}
	r, err := s.Load(ctx, "k")
	if err != nil || string(r.Data) != "old" {
		return fmt.Errorf("Load: %v, %w", r, err)
	}
	return nil
}

func TestReadOnlyDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	save(t, open(t, dir), "k", 0, "old")
	if os.Geteuid() == 0 {
		chown(t, dir, nobody)
		for _, name := range files(t, dir) {
			chown(t, filepath.Join(dir, name), nobody)
		}
		chmod(t, filepath.Dir(dir), 0o711)
	}
	chmod(t, dir, 0o500)
	defer chmod(t, dir, 0o700)
	if out, err := helper(t.Context(), "read-only", dir).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func chmod(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func chown(t *testing.T, path string, uid int) {
	t.Helper()
	if err := os.Chown(path, uid, -1); err != nil {
		t.Fatal(err)
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	top := filepath.Join(t.TempDir(), "a")
	dir := filepath.Join(top, "b")
	s := open(t, dir)
	save(t, s, "k", 0, "data")
	unlock, err := s.Lock(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	take(t, single(s), "1", 0)
	seen := 0
	err = filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o600)
		if e.IsDir() {
			mode = 0o700
		}
		if info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v, want %v", path, info.Mode().Perm(), mode)
		}
		seen++
		return nil
	})
	if err != nil || seen != 7 {
		t.Errorf("%d files and directories, %v; want 7", seen, err)
	}
}

func TestOthersCanWrite(t *testing.T) {
	t.Parallel()
	for mode, ok := range map[fs.FileMode]bool{
		0o700: true, 0o755: true, 0o770: false, 0o702: false, 0o777 | fs.ModeSticky: false,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			chmod(t, dir, mode)
			_, err := Open(Config{Path: dir})
			if ok && err != nil {
				t.Errorf("Open: %v", err)
			}
			if !ok && (!errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), "run: chmod 700 "+dir)) {
				t.Errorf("Open: %v, want ErrStore with the chmod to run", err)
			}
		})
	}
}

func TestDirectoryOfAnotherUser(t *testing.T) {
	t.Parallel()
	dir, me := t.TempDir(), os.Geteuid()
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := (user{uid: me}).checkDir(dir, info); err != nil {
		t.Error(err)
	}
	want := fmt.Sprintf("%s belongs to user %d, but this process runs as user %d; choose another directory, or run: chown %d %s", dir, me, me+1, me+1, dir)
	if err := (user{uid: me + 1}).checkDir(dir, info); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	// Open checks for the current user.
	theirs := "/"
	if me == 0 {
		theirs = dir
		chown(t, dir, nobody)
	}
	if _, err := Open(Config{Path: theirs}); !errors.Is(err, auth.ErrStore) || !strings.Contains(err.Error(), theirs+" belongs to user") {
		t.Errorf("Open of another user's directory: %v", err)
	}
}
