// Signals and the end of a container's command on Linux, by hanflow: the published module lacks a file of this name.

package osspecific

import (
	"os"
	"syscall"

	"github.com/argoproj/argo-workflows/v4/util/errors"
)

var Term = syscall.SIGTERM

// CanIgnoreSignal tells signals that concern the executor alone: a child ended, the Go runtime switches threads.
func CanIgnoreSignal(s os.Signal) bool {
	return s == syscall.SIGCHLD || s == syscall.SIGURG
}

// Kill signals the process and what it started, which share a process group.
func Kill(pid int, s syscall.Signal) error {
	if group, err := syscall.Getpgid(pid); err == nil {
		pid = -group
	}
	return syscall.Kill(pid, s)
}

func Setpgid(attributes *syscall.SysProcAttr) {
	attributes.Setpgid = true
}

// Wait reaps children until the process ends: as process 1 of the container the executor inherits orphans, too.
func Wait(process *os.Process) error {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR || (err == nil && pid != process.Pid):
			continue
		case err != nil:
			return err
		case status.Signaled():
			return errors.NewExitErr(128 + int(status.Signal()))
		default:
			return errors.NewExitErr(status.ExitStatus())
		}
	}
}
