package yamldoc

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/auth"
)

// disk is a file system. A file's name begins with fast, slow (it takes 6 s) or hang.
type disk struct {
	hang  chan struct{}
	mu    sync.Mutex
	reads map[string]int
}

func (d *disk) read(path string) (string, error) {
	d.mu.Lock()
	name := strings.TrimPrefix(path, "/dir/")
	d.reads[name]++
	text := fmt.Sprint(d.reads[name], "\n")
	d.mu.Unlock()
	switch name[:4] {
	case "slow":
		time.Sleep(6 * time.Second)
	case "hang":
		<-d.hang
	}
	return text, nil
}

// All files have the same 10 s. Each that does not answer is a fault of its own, and no fault of the others.
func TestFilesThatDoNotAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		files := &disk{hang: make(chan struct{}), reads: map[string]int{}}
		var c struct {
			Plain  string      `yaml:"plain"`
			Number int         `yaml:"number"`
			Again  string      `yaml:"again"`
			Secret auth.Secret `yaml:"secret"`
			Good   auth.Secret `yaml:"good"`
			List   []string    `yaml:"list"`
			File   string      `yaml:"plain_file" path:"true"`
			Left   Node        `yaml:"left"`
		}
		d := New("/dir/t.yaml", nil)
		d.read = files.read
		start := time.Now()
		root := d.Parse([]byte(`
plain: a${file:hang1}
number: ${file:slow1}
again: ${file:hang1}
secret: ${file:hang2}
good: ${file:slow2}
list: [x, "${file:fast1}${file:slow3}"]
plain_file: slow4
left: {a: "${file:fast2}"}
`[1:]))
		entries, _ := d.Entries(root)
		for _, e := range entries {
			d.ReadAhead(e, func(n Node) bool { return n.Name == "left" }, func(n Node) bool { return n.Name == "plain_file" })
		}
		d.Decode(&c, root, entries)
		var got []string
		for _, f := range d.Faults {
			got = append(got, fmt.Sprintf("%d:%d: %s: %s", f.Line, f.Col, f.Path, f.Message))
		}
		want := []string{
			"1:8: plain: /dir/hang1 does not answer",
			"3:8: again: /dir/hang1 does not answer",
			"4:9: secret: /dir/hang2 does not answer",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		good, err := c.Good.Value()
		if c.Number != 1 || good != "1" || err != nil || c.List[1] != "11" {
			t.Error(c.Number, good, err, c.List)
		}
		if text, err := d.Files.Read(c.File); text != "1\n" || err != nil {
			t.Error(text, err)
		}
		if took := time.Since(start).Round(time.Second); took != 10*time.Second {
			t.Errorf("took %s", took)
		}
		reads := map[string]int{"hang1": 1, "hang2": 1, "slow1": 1, "slow2": 2, "slow3": 1, "slow4": 1, "fast1": 1} // a secret again at its use
		close(files.hang)
		time.Sleep(time.Minute) // the reads end
		files.mu.Lock()
		defer files.mu.Unlock()
		if diff := cmp.Diff(reads, files.reads); diff != "" {
			t.Errorf("reads -want +got\n%s", diff)
		}
	})
}

// A use of a secret whose file hangs waits for 50 ms once, and gets the last text.
func TestSecretWhoseFileHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		text, hang := "one", chan struct{}(nil)
		d := New("/dir/t.yaml", nil)
		d.read = func(string) (string, error) {
			if hang != nil {
				<-hang
			}
			return text, nil
		}
		var c struct {
			Secret auth.Secret `yaml:"secret"`
		}
		root := d.Parse([]byte("secret: ${file:x}"))
		entries, _ := d.Entries(root)
		if d.Decode(&c, root, entries); d.Faults != nil {
			t.Fatal(d.Faults)
		}
		use := func(want string, wait time.Duration) {
			t.Helper()
			start := time.Now()
			if got, err := c.Secret.Value(); got != want || err != nil || time.Since(start) != wait {
				t.Errorf("%s, %v after %s, want %s after %s", got, err, time.Since(start), want, wait)
			}
		}
		use("one", 0)
		text = "two"
		use("two", 0)
		text, hang = "three", make(chan struct{})
		use("two", 50*time.Millisecond)
		use("two", 0)
		close(hang)
		synctest.Wait()
		use("three", 0)
	})
}
