package config

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/itsmauth/itsmauth/auth"
)

var update = flag.Bool("update", false, "write what is found to testdata/*.golden")

func TestGolden(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) < 60 {
		t.Fatal("testdata is not whole", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			got := ""
			conns, err := Load(file, testOptions()...)
			var problems Problems
			switch {
			case err == nil:
				got = "ok: " + strings.Join(conns.Names(), " ") + "\n"
				if err := conns.Close(); err != nil {
					t.Error(err)
				}
			case errors.As(err, &problems):
				got = portable(err.Error()) + "\n"
			default:
				t.Fatal(err)
			}
			for _, part := range []string{"s3cr", "hunter2"} {
				if strings.Contains(got, part) {
					t.Errorf("shows a secret: %s", got)
				}
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

// portable removes the path of this directory.
func portable(s string) string {
	here, _ := filepath.Abs(".")
	return filepath.ToSlash(strings.ReplaceAll(s, here+string(filepath.Separator), ""))
}

// Not parallel: it counts allocated bytes.
func TestLargeInput(t *testing.T) {
	huge := filepath.Join(t.TempDir(), "huge")
	if err := os.WriteFile(huge, make([]byte, 1<<20+1), 0o600); err != nil {
		t.Fatal(err)
	}
	laugh := "x-l0: &l0 [lol, lol]\n"
	for i := range 30 {
		laugh += fmt.Sprintf("x-l%d: &l%d [%s*l%d]\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*l%d, ", i), 9), i)
	}
	for name, tc := range map[string]struct{ data, want string }{
		"10 MiB":        {strings.Repeat("# filler\n", 10<<20/9), "t.yaml:1:1: larger than 1 MiB"},
		"laughs":        {"version: 1\n" + laugh + "connectors: *l30\n", "more than 100000 values, with aliases written out"},
		"depth":         {strings.Repeat("[", 1<<20-1), "t.yaml:1:1: not valid YAML"},
		"comments":      {strings.Repeat("#\n", 1<<17), "the file is empty"},
		"many problems": {"version: 1\nconnectors:\n" + manyConnectors(2000), "provider: missing"},
		"huge secret":   {"version: 1\nconnectors:\n  a:\n    provider: acme\n    base_url: https://h\n    client_id: a\n    client_secret: ${file:" + huge + "}\n", "t.yaml:7:20: connectors.a.client_secret: " + huge + " is larger than 1 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Parse("t.yaml", []byte(tc.data), testOptions()...)
			runtime.ReadMemStats(&after)
			if p, _ := err.(Problems); len(p) > 1100 {
				t.Errorf("%d problems", len(p))
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("want %q, got %.300v", tc.want, err)
			}
			if n := after.TotalAlloc - before.TotalAlloc; name == "laughs" && n > 64<<20 {
				t.Errorf("%d MiB allocated", n>>20)
			}
		})
	}
}

func manyConnectors(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "  connector-%d: {}\n", i)
	}
	return b.String()
}

func TestProblemsUnwrap(t *testing.T) {
	t.Parallel()
	_, err := parse1(t, "    sso_url: http://sso.example\n")
	if !errors.Is(err, auth.ErrInsecure) {
		t.Errorf("not ErrInsecure: %v", err)
	}
	var p Problem
	if !errors.As(err, &p) || p.File != "t.yaml" || p.Line != 8 || p.Col != 14 || p.Path != "connectors.a.sso_url" {
		t.Errorf("%+v", p)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	_, err = parse1(t, "    password: ${file:none}\n")
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a secret that is not there: %v", err)
	}
}
