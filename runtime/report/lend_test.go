package report

import (
	"strings"
	"testing"

	"github.com/crinet-project/crinet/runtime/admin"
)

// Under noop there is no network to lend, and that is said.
func TestNothingIsLentUnderNoop(t *testing.T) {
	if _, err := new(Source).Lend(t.Context(), admin.Lend{}); err == nil || !strings.Contains(err.Error(), "noop") {
		t.Errorf("under noop: %v", err)
	}
}

// A borrower's name is fit for logs and terminals, and short.
func TestBorrowersName(t *testing.T) {
	if got := plain("crinetctl\x1b[31m\ntest"); got != "crinetctl?[31m?test" {
		t.Errorf("it is %q", got)
	}
	if got := plain(strings.Repeat("ö", 1000)); len([]rune(got)) != maxWho {
		t.Errorf("it has %d characters", len([]rune(got)))
	}
}
