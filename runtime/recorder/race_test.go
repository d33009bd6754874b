//go:build race

package recorder

// slower is how much more time code may take under the race detector.
const slower = 10
