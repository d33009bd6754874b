// Package watchdog tells the service manager how crinetd is (sd_notify(3)): a line
// of text for `systemctl status`, and a sign of life as long as the kubelet and the
// runtime get answers. Without signs the service manager starts crinetd anew.
//
// It asks as they do, over the sockets: Status of CRI, which crinetd answers from
// memory, so that a runtime that hangs is not crinetd's fault, and STATUS of CNI. An
// answer is a sign of life whatever it says.
package watchdog
