//go:build tools

// Package critest pins what the test binary of sigs.k8s.io/cri-tools/cmd/critest
// is made of: go test -c sigs.k8s.io/cri-tools/cmd/critest.
package critest

import (
	_ "github.com/onsi/ginkgo/v2"
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/framework"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
