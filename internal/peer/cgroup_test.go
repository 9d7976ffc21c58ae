package peer

import (
	"strings"
	"testing"
)

const (
	id      = "4f1b3c9d2e8a7065f4b3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1"
	otherID = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
)

func TestUnitAndContainerAreReadFromTheCgroup(t *testing.T) {
	for _, c := range []struct{ name, cgroup, unit, container string }{
		{"none", "", "", ""},
		{"the root", "/", "", ""},
		{"process 1", "/init.scope", "init.scope", ""},
		{"a service", "/system.slice/cron.service", "cron.service", ""},
		{"an instance of a template", `/system.slice/system-getty.slice/getty@tty1.service`, "getty@tty1.service", ""},
		{"a name with escapes", `/system.slice/system-mnt\x2ddata.slice/mnt\x2ddata@a\x2db.service`, `mnt\x2ddata@a\x2db.service`, ""},
		{"a name that the kernel would take for its file", "/system.slice/_cgroup.service", "cgroup.service", ""},
		{"a session", "/user.slice/user-1000.slice/session-3.scope", "session-3.scope", ""},
		{"a user's service", "/user.slice/user-1000.slice/user@1000.service/app.slice/agent.service", "user@1000.service", ""},
		{"a user's service that is called as the system's", "/user.slice/user-1000.slice/user@1000.service/system.slice/cron.service", "user@1000.service", ""},
		{"what a service makes below itself", "/system.slice/agent.service/cron.service", "agent.service", ""},
		{"a slice only", "/system.slice", "", ""},
		{"a deleted service", "/system.slice/cron.service (deleted)", "", ""},
		{"a deleted part of a service", "/system.slice/cron.service/part (deleted)", "cron.service", ""},
		{"outside of the cgroup namespace", "/../../system.slice/cron.service", "", ""},
		{"no absolute path", "system.slice/cron.service", "", ""},
		{"a name that is only the kind", "/system.slice/.service", "", ""},
		{"no systemd", "/daemons/cron", "", ""},
		{"a service in a container", "/docker/" + id + "/system.slice/cron.service", "", id},

		{"Docker by systemd", "/system.slice/docker-" + id + ".scope", "docker-" + id + ".scope", id},
		{"Docker by itself", "/docker/" + id, "", id},
		{"Docker in Docker", "/docker/" + id + "/docker/" + otherID, "", id},
		{"Docker in Docker by systemd", "/system.slice/docker-" + id + ".scope/system.slice/docker-" + otherID + ".scope", "docker-" + id + ".scope", id},
		{"systemd within Docker", "/system.slice/docker-" + id + ".scope/init.scope", "docker-" + id + ".scope", id},
		{"Docker's daemon", "/system.slice/docker.service", "docker.service", ""},
		{"Podman by systemd", "/machine.slice/libpod-" + id + ".scope/container", "libpod-" + id + ".scope", id},
		{"Podman by itself", "/libpod_parent/libpod-" + id, "", id},
		{"Podman's monitor", "/machine.slice/libpod-conmon-" + id + ".scope", "libpod-conmon-" + id + ".scope", ""},
		{"a user's Podman", "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope/container", "user@1000.service", ""},
		{
			"Kubernetes and containerd by systemd",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0c4b1d2e_8f3a_4b6c.slice/cri-containerd-" + id + ".scope",
			"cri-containerd-" + id + ".scope", id,
		},
		{"Kubernetes and containerd by itself", "/kubepods/burstable/pod0c4b1d2e-8f3a-4b6c/" + id, "", id},
		{"Kubernetes and CRI-O", "/kubepods.slice/kubepods-pod0c4b1d2e_8f3a.slice/crio-" + id + ".scope/container", "crio-" + id + ".scope", id},
		{"CRI-O's monitor", "/kubepods.slice/crio-conmon-" + id + ".scope", "crio-conmon-" + id + ".scope", ""},
		{"Kubernetes in Docker", "/docker/" + id + "/kubelet/kubepods/besteffort/pod1/" + otherID, "", id},
		{"nerdctl", "/system.slice/nerdctl-" + id + ".scope", "nerdctl-" + id + ".scope", id},
		{"containerd below its own service", "/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:" + id, "containerd.service", ""},
		{"a service that poses as a container", "/system.slice/agent.service/docker-" + id + ".scope", "agent.service", ""},
		{"nspawn", "/machine.slice/systemd-nspawn@web.service/payload/system.slice/cron.service", "systemd-nspawn@web.service", "web"},
		{"LXC", "/lxc.payload.web/system.slice/cron.service", "", "web"},
		{"LXC of old", "/lxc/web/system.slice/cron.service", "", "web"},
		{"LXC's monitor", "/lxc.monitor.web", "", ""},
		{"libvirt", `/machine.slice/machine-qemu\x2d1\x2dweb.scope/libvirt`, `machine-qemu\x2d1\x2dweb.scope`, `qemu\x2d1\x2dweb`},
		{"a user who poses as a container", "/user.slice/user-1000.slice/user@1000.service/docker-" + id + ".scope", "user@1000.service", ""},
		{"an id that is too short", "/docker/" + id[1:], "", ""},
		{"an id in capitals", "/docker/" + strings.ToUpper(id), "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Unit(c.cgroup); got != c.unit {
				t.Errorf("the unit of %s is %q, want %q", c.cgroup, got, c.unit)
			}
			if got := Container(c.cgroup); got != c.container {
				t.Errorf("the container of %s is %q, want %q", c.cgroup, got, c.container)
			}
		})
	}
}

// FuzzCgroup: what a process makes below its own cgroup changes neither unit nor
// container where it is in a unit or container already.
func FuzzCgroup(f *testing.F) {
	f.Add("/system.slice/cron.service", "/x.service")
	f.Add("/docker/"+id, "/docker/"+otherID)
	f.Add("/system.slice/docker-"+id+".scope", "/../y")
	f.Fuzz(func(t *testing.T, cgroup, below string) {
		unit, container := Unit(cgroup), Container(cgroup)
		if strings.ContainsRune(unit, '/') || strings.ContainsRune(container, '/') {
			t.Fatalf("%q is of unit %q and container %q", cgroup, unit, container)
		}
		deeper := cgroup + "/" + below
		if got := Unit(deeper); unit != "" && got != "" && got != unit {
			t.Errorf("%q is of unit %q, and %q of %q", cgroup, unit, deeper, got)
		}
		if got := Container(deeper); (unit != "" || container != "") && got != "" && got != container {
			t.Errorf("%q is of container %q, and %q of %q", cgroup, container, deeper, got)
		}
	})
}
