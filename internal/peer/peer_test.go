package peer

import "testing"

func TestUnitsAndContainersAreReadFromCgroups(t *testing.T) {
	const id = "3f4a8a9c0d2b4c5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6"
	for _, c := range []struct{ cgroup, unit, container string }{
		{"", "", ""},
		{"/", "", ""},
		{"/init.scope", "init.scope", ""},
		{"/system.slice/sshd.service", "sshd.service", ""},
		{"/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", ""},
		{"/user.slice/user-1000.slice/session-3.scope", "session-3.scope", ""},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/sshd.service", "user@1000.service", ""},
		{"/system.slice/docker-" + id + ".scope", "docker-" + id + ".scope", id},
		{"/docker/" + id, "", id},
		{"/machine.slice/libpod-" + id + ".scope/container", "libpod-" + id + ".scope", id},
		{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-" + id + ".scope", "cri-containerd-" + id + ".scope", id},
		{"/kubepods/besteffort/pod1/" + id, "", id},
		{"/lxc.payload.web/system.slice/sshd.service", "sshd.service", "web"},
		{"/system.slice/_cpu.service", "cpu.service", ""},
		{"/system.slice/holdfast.service/sub", "holdfast.service", ""},
	} {
		if got := Unit(c.cgroup); got != c.unit {
			t.Errorf("%s: unit %q, want %q", c.cgroup, got, c.unit)
		}
		if got := Container(c.cgroup); got != c.container {
			t.Errorf("%s: container %q, want %q", c.cgroup, got, c.container)
		}
	}
}
