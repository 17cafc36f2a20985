// Package browser has the tests that need a real browser. It is a module of its own, so that the
// browser's driver is not a dependency of itsmauth.
package browser

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/chromedp"
)

// freeRedirectURI returns a redirect URI on a free port. The port is below those that systems give to
// outgoing connections.
func freeRedirectURI(t *testing.T) string {
	t.Helper()
	var err error
	for range 10 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))); err == nil {
			defer l.Close()
			return "http://" + l.Addr().String() + "/callback"
		}
	}
	t.Fatal(err)
	return ""
}

// taken matches the error of a program whose port is in use. It is started again with another port.
const taken = "address already in use"

// All tests share one Chromium: starting another one, or a profile, takes as long as ten pages.
func TestPages(t *testing.T) {
	b := newBrowser(t)
	for name, test := range map[string]func(*testing.T, browser){
		"handler": testHandler, "login": testLogin, "commands": testCommands,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, b)
		})
	}
}

// A browser is a headless Chromium.
type browser struct{ ctx context.Context }

// newBrowser starts Chromium. If it is not installed, the test is skipped, or fails with CI=true.
func newBrowser(t *testing.T) browser {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		const missing = "there is no Chromium here; on Debian: apt-get install chromium"
		if os.Getenv("CI") == "true" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	opts := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(path),
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("no-proxy-server", true),
		chromedp.Flag("host-resolver-rules", "MAP rebound.example 127.0.0.1"),
	)
	if os.Getuid() == 0 {
		opts = append(opts, chromedp.NoSandbox)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return browser{ctx}
}

// A tab fails its test if its page violates the page's Content-Security-Policy.
type tab struct {
	t   *testing.T
	ctx context.Context
}

// person opens a tab in a new profile, like another browser.
func (b browser) person(t *testing.T) tab {
	t.Helper()
	return newTab(t, b.ctx, chromedp.WithNewBrowserContext())
}

// in returns p for a subtest.
func (p tab) in(t *testing.T) tab {
	p.t = t
	return p
}

// another opens another tab in the same profile.
func (p tab) another() tab {
	p.t.Helper()
	return newTab(p.t, p.ctx)
}

func newTab(t *testing.T, parent context.Context, opts ...chromedp.ContextOption) tab {
	t.Helper()
	var mu sync.Mutex
	var refused []string
	ctx, cancel := chromedp.NewContext(parent, append(opts, chromedp.WithListener(func(ev any) {
		if e, ok := ev.(*log.EventEntryAdded); ok && strings.Contains(e.Entry.Text, "Content Security Policy") {
			mu.Lock()
			defer mu.Unlock()
			refused = append(refused, e.Entry.Text)
		}
	}))...)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for _, s := range refused {
			t.Error("the browser refused:", s)
		}
	})
	if err := chromedp.Do(ctx); err != nil { // the tab is closed with the context of the first call
		t.Fatal(err)
	}
	p := tab{t, ctx}
	p.do(chromedp.EmulateViewport(1000, 700))
	return p
}

func (p tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	read(p, chromedp.Steps(steps...))
}

func read[T any](p tab, a chromedp.Action[T]) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, time.Minute)
	defer cancel()
	v, err := chromedp.Run(ctx, a)
	if err != nil {
		ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
		defer cancel()
		shown, _ := chromedp.Run(ctx, chromedp.Evaluate[string]("location.href + '\\n' + document.body.innerText"))
		p.t.Fatalf("%v, at %s", err, shown)
	}
	return v
}

// sees waits for a page with that heading.
func (p tab) sees(heading string) {
	p.t.Helper()
	p.do(chromedp.WaitVisible(`//h1[contains(., "` + heading + `")]`))
}

// looks checks the rules for all pages, in light and dark and in all widths. If SHOTS names a directory,
// it keeps screenshots there.
func (p tab) looks(name string) {
	p.t.Helper()
	wrong := read(p, chromedp.Evaluate[[]string](`[
		[document.documentElement.lang === "en", "no language"],
		[/\S · itsmauth$/.test(document.title), "no title: " + document.title],
		[document.querySelectorAll("main").length === 1, "no main"],
		[document.querySelectorAll("h1").length === 1, "not one h1"],
		[!document.querySelector("script"), "a script"],
		[getComputedStyle(document.querySelector("main")).maxWidth !== "none", "no stylesheet"],
		[[...document.querySelectorAll("button, a")].every(e => e.innerText.trim()), "a control without words"],
	].filter(c => !c[0]).map(c => c[1])`))
	for _, form := range []struct {
		name, scheme string
		width        int64
	}{{"light", "light", 1000}, {"dark", "dark", 1000}, {"phone", "light", 375}, {"phone-dark", "dark", 375}} {
		p.do(scheme(form.scheme), chromedp.EmulateViewport(form.width, 700))
		if read(p, chromedp.Evaluate[bool](`document.documentElement.scrollWidth > innerWidth`)) {
			wrong = append(wrong, "wider than "+form.name)
		}
		if dir := os.Getenv("SHOTS"); dir != "" {
			picture := read(p, chromedp.FullScreenshot(100))
			if err := os.WriteFile(filepath.Join(dir, name+"-"+form.name+".png"), picture, 0o644); err != nil {
				p.t.Error(err)
			}
		}
	}
	p.do(scheme(""), chromedp.EmulateViewport(1000, 700))
	for _, s := range wrong {
		p.t.Errorf("%s: %s", name, s)
	}
}

func scheme(s string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: s}},
		})
		return err
	})
}
