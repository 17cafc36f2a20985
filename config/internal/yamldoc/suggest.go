package yamldoc

import (
	"iter"
	"slices"
	"strings"
)

// Suggest says which of known was probably meant by name, or else lists known. It never repeats name,
// which may be a misplaced secret.
func Suggest(name string, known iter.Seq[string]) string {
	names := slices.Compact(slices.Sorted(known))
	switch best := similar(name, names); {
	case best != "":
		return "did you mean " + best + "?"
	case names != nil:
		return "known: " + strings.Join(names, ", ")
	}
	return ""
}

// similar returns the one of names that was probably meant by name, or "".
func similar(name string, names []string) string {
	best, least := "", 0
	for _, k := range names {
		// Two words that differ in a third of their letters are two words.
		if d := distance(strings.ToLower(name), strings.ToLower(k)); d <= max(1, len(k)/3) && (best == "" || d < least) {
			best, least = k, d
		}
	}
	return best
}

// distance counts the insertions, deletions, replacements and swaps of neighbours between a and b
// (optimal string alignment). For names of very different lengths it is only large.
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
