package config

import (
	"iter"
	"slices"
	"strings"
)

// suggest says which of known was probably meant by name, else what is known. It never repeats
// name.
func suggest(name string, known iter.Seq[string]) string {
	names := slices.Compact(slices.Sorted(known))
	best, least := "", 0
	for _, k := range names {
		// Two words that differ in a third of their letters are two words.
		if d := distance(strings.ToLower(name), strings.ToLower(k)); d <= max(1, len(k)/3) && (best == "" || d < least) {
			best, least = k, d
		}
	}
	switch {
	case best != "":
		return "; did you mean " + best + "?"
	case names != nil:
		return "; known: " + strings.Join(names, ", ")
	}
	return ""
}

// distance counts the insertions, deletions, replacements and swaps of neighbours between a and b
// (optimal string alignment). Names of very different lengths are just far.
func distance(a, b string) int {
	if len(a) > 2*len(b)+2 {
		return len(a)
	}
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range len(b) {
		d[0][j+1] = j + 1
		for i := range len(a) {
			replace := d[i][j]
			if a[i] != b[j] {
				replace++
			}
			d[i+1][j+1] = min(d[i][j+1]+1, d[i+1][j]+1, replace)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				d[i+1][j+1] = min(d[i+1][j+1], d[i-1][j-1]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
