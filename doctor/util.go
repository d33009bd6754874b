package doctor

import (
	"cmp"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// owner is the user of a file; the largest number if it cannot be known.
func owner(path string) uint32 {
	var stat unix.Stat_t
	if unix.Stat(path, &stat) != nil {
		return ^uint32(0)
	}
	return stat.Uid
}
