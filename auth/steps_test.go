package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestConflict tests what follows if another process has changed the record before a save.
func TestConflict(t *testing.T) {
	t.Parallel()
	now := time.Now()
	record := func(generation int64, accessToken string) tokenRecord {
		return tokenRecord{Generation: generation, AccessToken: accessToken, RefreshToken: "R-" + accessToken, Obtained: now, Lifetime: time.Hour}
	}
	expired, loggedOut := record(12, "theirs"), record(12, "theirs")
	expired.Lifetime = 0
	loggedOut.ConsentLost = &consentLost{Since: now, LoggedOut: true}
	oldLogout := loggedOut
	oldLogout.Generation = 5
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		published, rotated, resaved bool
		met                         tokenRecord
		loadFails                   error

		step step
		told []news
		err  error
	}{
		"our own":                         {met: record(10, "ours"), rotated: true, step: finished, told: []news{tokenObtained, tokenSaved}},
		"our own, published":              {met: record(10, "ours"), published: true, step: finished, told: []news{tokenSaved}},
		"as new as ours":                  {met: record(10, "theirs"), published: true, step: finished, told: []news{tokenAdopted}},
		"newer":                           {met: record(12, "theirs"), published: true, step: finished, told: []news{tokenAdopted}},
		"newer with our access token":     {met: record(12, "ours"), published: true, step: finished, told: []news{tokenAdopted}},
		"newer, rotated":                  {met: record(12, "theirs"), rotated: true, step: finished, told: []news{tokenAdopted}},
		"newer, rotated and published":    {met: record(12, "theirs"), rotated: true, published: true, step: finished},
		"newer, expired":                  {met: expired, rotated: true, step: finished, told: []news{tokenObtained, tokenSaved}},
		"a logout":                        {met: loggedOut, rotated: true, step: finished, told: []news{consentEnded}, err: ErrConsentRequired},
		"a logout, published":             {met: loggedOut, published: true, step: finished, told: []news{consentEnded}, err: ErrConsentRequired},
		"an older logout":                 {met: oldLogout, rotated: true, step: saving},
		"older":                           {met: record(5, "theirs"), published: true, step: finished, told: []news{tokenAdopted}},
		"older, rotated":                  {met: record(5, "theirs"), rotated: true, step: saving},
		"older, rotated, again":           {met: record(5, "theirs"), rotated: true, resaved: true, step: pausing, told: []news{tokenObtained, rotationUnsaved}, err: ErrConflict},
		"none":                            {published: true, step: saving},
		"none again":                      {published: true, resaved: true, step: finished, told: []news{tokenUnsaved}},
		"it cannot be read":               {loadFails: broken, published: true, met: record(10, "ours"), step: finished, told: []news{tokenUnsaved}},
		"it cannot be read, and rotation": {loadFails: broken, rotated: true, met: record(10, "ours"), step: pausing, told: []news{tokenObtained, rotationUnsaved}, err: broken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newProtocol(rules{timeout: exchangeTimeout}, task{})
			p.made, p.published, p.rotated, p.resaved, p.saveBegan = record(10, "ours"), tc.published, tc.rotated, tc.resaved, now
			p.step = conflicted
			p.advance(now, event{record: tc.met, version: 3, err: tc.loadFails})
			var told []news
			for _, r := range p.results {
				told = append(told, r.is)
			}
			if p.step != tc.step || !slices.Equal(told, tc.told) || !errors.Is(p.err, tc.err) {
				t.Errorf("step %d, told %v, %v", p.step, told, p.err)
			}
		})
	}
}

// TestFailing tests the results if the record of a failed exchange cannot be saved.
func TestFailing(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		writing tokenRecord
		err     error
		told    []news
		version uint64 // of the store's record, as far as is known
	}{
		"refused, saved":     {writing: tokenRecord{ConsentLost: new(consentLost)}, version: 4},
		"refused, not saved": {writing: tokenRecord{ConsentLost: new(consentLost)}, err: broken, told: []news{refusalUnsaved}, version: 3},
		"a mark stays":       {err: broken, version: 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newProtocol(rules{}, task{})
			p.step, p.version, p.writing = failing, 3, tc.writing
			p.advance(time.Now(), event{err: tc.err})
			var told []news
			for _, r := range p.results {
				told = append(told, r.is)
			}
			if p.step != finished || p.version != tc.version || !slices.Equal(told, tc.told) {
				t.Errorf("step %d, version %d, told %v", p.step, p.version, told)
			}
		})
	}
}

// TestAdopts tests which stored tokens are as good as one of an exchange.
func TestAdopts(t *testing.T) {
	t.Parallel()
	now := time.Now()
	fresh := tokenRecord{Generation: 12, AccessToken: "theirs", RefreshToken: "R", Obtained: now, Refreshed: now, Lifetime: time.Hour}
	with := func(change func(*tokenRecord)) tokenRecord {
		r := fresh
		change(&r)
		return r
	}
	nearlyOver := with(func(r *tokenRecord) { r.Obtained = now.Add(-57 * time.Minute) })
	halfway := with(func(r *tokenRecord) {
		r.Obtained, r.Refreshed, r.Lifetime = now.Add(-6*time.Hour), now.Add(-6*time.Hour), 24*time.Hour
	})
	ahead := with(func(r *tokenRecord) { r.ahead = true })
	for name, tc := range map[string]struct {
		reason reason
		record tokenRecord
		want   bool
	}{
		"newer":                           {needed, fresh, true},
		"as old as ours":                  {needed, with(func(r *tokenRecord) { r.Generation = 10 }), false},
		"newer with our access token":     {needed, with(func(r *tokenRecord) { r.AccessToken = "ours" }), false},
		"no access token":                 {needed, with(func(r *tokenRecord) { r.AccessToken = "" }), false},
		"refresh token refused":           {needed, with(func(r *tokenRecord) { r.ConsentLost = new(consentLost) }), true},
		"expired":                         {needed, with(func(r *tokenRecord) { r.Obtained = now.Add(-time.Hour) }), false},
		"nearly over, a caller waits":     {needed, nearlyOver, true},
		"nearly over, for a login":        {login, nearlyOver, true},
		"nearly over, ours is stale":      {stale, nearlyOver, false},
		"from the future, a caller waits": {needed, ahead, true},
		"from the future, ours is stale":  {stale, ahead, false},
		"newer, ours is stale":            {stale, fresh, true},
		"refresh due, ours is stale":      {stale, halfway, true},
		"refresh due, for a watch":        {watch, halfway, false},
		"newer, for a watch":              {watch, fresh, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ours := &snapshot{record: tokenRecord{Generation: 10, AccessToken: "ours"}}
			p := newProtocol(rules{refresh: Refresh{Lifetime: 10 * time.Hour}, earlyRefresh: 5 * time.Minute}, task{reason: tc.reason, replaces: ours})
			if got := p.adopts(now, tc.record); got != tc.want {
				t.Error(got)
			}
		})
	}
}

// TestLeft tests what a logout leaves in the store.
func TestLeft(t *testing.T) {
	t.Parallel()
	login := tokenRecord{Generation: 10, RefreshToken: "R", Seed: "S"}
	for name, tc := range map[string]struct {
		rules   rules
		record  tokenRecord
		keeps   bool // a generation, so that no process writes the tokens back
		consent bool
	}{
		"a person's login":          {rules{person: true}, login, true, true},
		"a person, nothing to lose": {rules{person: true}, tokenRecord{}, true, true},
		"a seed's refresh token":    {rules{}, login, true, false},
		"client credentials":        {rules{}, tokenRecord{Generation: 10}, false, false},
		"expendable":                {rules{refresh: Refresh{Expendable: true}}, login, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newProtocol(tc.rules, task{reason: logout})
			p.record = tc.record
			r := p.left(time.Now())
			if r.Generation > tc.record.Generation != tc.keeps || r.loggedOut() != tc.consent || r.AccessToken+r.RefreshToken != "" {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestNotForgotten tests the error of a logout that the store does not take.
func TestNotForgotten(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{ErrConflict, fmt.Errorf("%w: full", ErrStore)} {
		err := new(protocol).notForgotten(cause)
		if !errors.Is(err, ErrStore) || !errors.Is(err, cause) || strings.Count(err.Error(), ErrStore.Error()) != 1 {
			t.Error(err)
		}
	}
}
