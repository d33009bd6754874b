// Package report puts together what the parts of crinetd know, for admin.sock,
// the verbose info of Status, and the metrics that are read where they are kept.
package report
