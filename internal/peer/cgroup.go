package peer

import (
	"path"
	"regexp"
	"strings"
)

// Unit is the systemd unit, a service or scope, that the cgroup belongs to: the
// first below the slices. What is further down is made by that unit's processes,
// which may call it as they like; so all that a user's own systemd starts is
// user@UID.service. Empty where it can't be told.
func Unit(cgroup string) string {
	for _, name := range components(cgroup) {
		if strings.HasSuffix(name, ".slice") {
			continue
		}
		// systemd puts "_" before what the kernel could take for its own file.
		name = strings.TrimPrefix(name, "_")
		if isUnit(name) {
			return name
		}
		return ""
	}
	return ""
}

// Container is the id or name of the container that the cgroup belongs to, as Docker,
// Podman, containerd, CRI-O, LXC, systemd-nspawn and libvirt call cgroups, whether
// systemd makes them or they do it themselves. A container within another is the outer
// one's. Below a service nothing is looked for, as with Unit: a user's own containers
// have no id here, because a user could pose as any. Empty where there is none.
func Container(cgroup string) string {
	names := components(cgroup)
	for n, name := range names {
		if n == 1 && names[0] == "lxc" {
			return name
		}
		for _, kind := range containerNames {
			if m := kind.FindStringSubmatch(name); m != nil {
				return m[1]
			}
		}
		if strings.HasSuffix(name, ".scope") || strings.HasSuffix(name, ".service") {
			return ""
		}
	}
	return ""
}

// containerNames are what the name of a container's cgroup looks like: most have an id
// of 256 bits, after the name of what manages it.
var containerNames = []*regexp.Regexp{
	regexp.MustCompile(`^(?:(?:docker|libpod|cri-containerd|nerdctl|crio)-)?([0-9a-f]{64})(?:\.scope)?$`),
	regexp.MustCompile(`^lxc\.payload\.(.+)$`),
	regexp.MustCompile(`^machine-(.+)\.scope$`),
	regexp.MustCompile(`^systemd-nspawn@(.+)\.service$`),
}

// components are the names in a path of a cgroup. There are none where the path is
// not one below the root, such as "/../x", which is outside of the caller's cgroup
// namespace.
func components(cgroup string) []string {
	if !path.IsAbs(cgroup) || cgroup == "/" || path.Clean(cgroup) != cgroup {
		return nil
	}
	return strings.Split(cgroup[1:], "/")
}

// isUnit tells whether systemd could call a service or scope so.
func isUnit(name string) bool {
	return len(name) < 256 && unitName.MatchString(name)
}

// unitName is from systemd's unit-name.c: VALID_CHARS_WITH_AT.
var unitName = regexp.MustCompile(`^[0-9A-Za-z:_.\\-][0-9A-Za-z:_.\\@-]*\.(service|scope)$`)
