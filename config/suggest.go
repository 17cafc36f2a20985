package config

import (
	"slices"
	"strings"
)

// suggest says which of known was probably meant by name, else what is known. It never repeats
// name.
func suggest(name string, known []string) string {
	best, least := "", 0
	for _, k := range known {
		// Two words that differ in a third of their letters are two words.
		if d := distance(strings.ToLower(name), strings.ToLower(k)); d <= max(1, len(k)/3) && (best == "" || d < least) {
			best, least = k, d
		}
	}
	switch {
	case best != "":
		return "; did you mean " + best + "?"
	case len(known) == 0:
		return ""
	}
	sorted := slices.Sorted(slices.Values(known))
	return "; known: " + strings.Join(sorted, ", ")
}

// distance counts the insertions, deletions, replacements and swaps of neighbours between a and b
// (optimal string alignment). Names of very different lengths are just far.
func distance(a, b string) int {
	const far = 1 << 10
	if len(a) > 2*len(b)+2 {
		return far
	}
	prev2, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := prev[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(prev[j]+1, row[j-1]+1, replace)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev, row = prev, row, prev2
	}
	return prev[len(b)]
}
