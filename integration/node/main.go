package node

import (
	"context"
	"fmt"
	"os"
)

// Main is the TestMain of packages whose tests run nodes. It makes a kit, with crinet's
// programs if that is said, hands it to set, and runs the tests; m is a [testing.M]. It
// returns the process's exit code. Without root no test runs; that is a failure where
// CRINET_TEST_REQUIRE_ALL is set.
func Main(m interface{ Run() int }, crinet bool, set func(*Kit)) int {
	if os.Geteuid() != 0 {
		if os.Getenv("CRINET_TEST_REQUIRE_ALL") != "" {
			fmt.Fprintln(os.Stderr, "CRINET_TEST_REQUIRE_ALL is set, but these tests need root")
			return 1
		}
		fmt.Fprintln(os.Stderr, "skipped: these tests need root")
		return 0
	}
	ctx := context.Background()
	kit, err := NewKit(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if crinet {
		err = kit.BuildCrinet(ctx, true)
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		set(kit)
		code = m.Run()
	}
	if err := kit.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}
