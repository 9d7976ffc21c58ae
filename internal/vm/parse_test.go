package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAptSourcesInTheOneLineFormat(t *testing.T) {
	text := `
# deb http://commented.example/debian bookworm main
deb http://mirror.example/debian bookworm main contrib # and why
deb-src http://mirror.example/debian bookworm main
deb	[arch=amd64 signed-by=/usr/share/keyrings/a.gpg,/b.gpg] http://security.example/d bookworm-security main
`
	got, err := parseSourcesList(text)
	if err != nil {
		t.Fatal(err)
	}
	want := []source{
		{uris: []string{"http://mirror.example/debian"}, suites: []string{"bookworm"}, components: []string{"main", "contrib"}},
		{
			uris: []string{"http://security.example/d"}, suites: []string{"bookworm-security"}, components: []string{"main"},
			options: []string{"Signed-By: /usr/share/keyrings/a.gpg /b.gpg"},
		},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(source{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, bad := range []string{"deb [signed-by=x http://mirror.example/debian bookworm main", "deb http://mirror.example/debian"} {
		if _, err := parseSourcesList(bad); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

func TestAptSourcesInTheDeb822Format(t *testing.T) {
	text := `# the machine's own
Types: deb deb-src
URIs: http://mirror.example/debian http://second.example/debian
Suites: trixie trixie-updates
# in the middle of a stanza
Components: main
Architectures: amd64
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main

Types: deb-src
URIs: http://src.example/debian
Suites: trixie
Components: main
`
	got, err := parseSourcesDeb822(text)
	if err != nil {
		t.Fatal(err)
	}
	want := []source{{
		uris:       []string{"http://mirror.example/debian", "http://second.example/debian"},
		suites:     []string{"trixie", "trixie-updates"},
		components: []string{"main"},
		options:    []string{"Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF"},
	}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(source{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, bad := range []string{" continued\n", "no field\n"} {
		if _, err := parseSourcesDeb822(bad); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

func TestTheMirrorIsFoundAmongTheMachinesSources(t *testing.T) {
	one := func(uri, suite, component string) source {
		return source{uris: []string{uri}, suites: []string{suite}, components: []string{component}}
	}
	debian, security := one("http://m/debian", "bookworm", "main"), one("http://m/security", "bookworm-security", "main")
	tests := []struct {
		name           string
		sources        []source
		main, security string
	}{
		{"a plain machine", []source{debian, security}, "http://m/debian", "http://m/security"},
		{"no security mirror", []source{debian}, "http://m/debian", ""},
		{"by class of release", []source{one("http://m/debian", "stable", "main")}, "http://m/debian", ""},
		{"others' repositories first", []source{
			one("http://cloud/apt", "cloud-sdk-bookworm", "main"), one("http://node", "nodistro", "main"),
			one("http://partner", "bookworm", "non-free"), security, debian,
		}, "http://m/debian", "http://m/security"},
		{"only others' repositories", []source{one("http://node", "nodistro", "main")}, "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m, err := findMirrors(test.sources, "bookworm")
			if got := strings.Join(m.main.uris, " "); got != test.main || (err == nil) != (test.main != "") {
				t.Errorf("mirror %q, %v, want %q", got, err, test.main)
			}
			if got := strings.Join(m.security.uris, " "); got != test.security {
				t.Errorf("security mirror %q, want %q", got, test.security)
			}
		})
	}
}

func TestAStanzaForAnotherReleaseKeepsHowTheMirrorIsVerified(t *testing.T) {
	s := source{
		uris: []string{"http://m/debian"}, suites: []string{"bookworm"}, components: []string{"main"},
		options: []string{"Signed-By: /k.gpg"},
	}
	want := "Types: deb\nURIs: http://m/debian\nSuites: bullseye\nComponents: main\n" +
		"Architectures: amd64\nTargets: Packages\nSigned-By: /k.gpg\n"
	if got := s.stanza("bullseye"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestSourcesAreReadFromAllFilesOfAptsDirectory(t *testing.T) {
	etc := t.TempDir()
	for name, text := range map[string]string{
		"sources.list":              "deb http://a b main\n",
		"sources.list.d/c.list":     "deb http://c d main\n",
		"sources.list.d/e.sources":  "Types: deb\nURIs: http://e\nSuites: f\nComponents: main\n",
		"sources.list.d/ignored.gz": "neither\n",
	} {
		file := filepath.Join(etc, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := machineSources(etc)
	if err != nil {
		t.Fatal(err)
	}
	var uris []string
	for _, s := range got {
		uris = append(uris, s.uris...)
	}
	if diff := cmp.Diff([]string{"http://a", "http://c", "http://e"}, uris); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAKernelsPackagesAreFoundByItsDependencies(t *testing.T) {
	text := `Package: linux-image-7.3.4+deb13-amd64
Version: 7.3.4-1~bpo13+1
Depends: dracut | initramfs-tools (>= 0.120), linux-base-7.3.4+deb13-amd64 (= 7.3.4-1~bpo13+1),
 linux-binary-7.3.4+deb13-amd64 (= 7.3.4-1~bpo13+1), linux-modules-7.3.4+deb13-amd64:amd64
Description: Linux
 for PCs

Package: linux-image-7.3.4+deb13-amd64
Version: 1
`
	fields := parseControl(text)
	if fields["Version"] != "7.3.4-1~bpo13+1" || fields["Description"] != "Linux\nfor PCs" {
		t.Errorf("%q", fields)
	}
	var kernel []string
	for _, name := range dependNames(fields["Depends"]) {
		if kernelPackage.MatchString(name) {
			kernel = append(kernel, name)
		}
	}
	if diff := cmp.Diff([]string{"linux-binary-7.3.4+deb13-amd64", "linux-modules-7.3.4+deb13-amd64"}, kernel); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for name, is := range map[string]bool{
		"linux-image-6.1.0-50-amd64": true, "linux-image-amd64": false, "linux-base": false, "linux-modules-amd64": false,
	} {
		if kernelPackage.MatchString(name) != is {
			t.Errorf("%s taken for a package with a kernel: %v", name, !is)
		}
	}
}

func TestModulesAreLoadedAfterWhatTheyNeed(t *testing.T) {
	tree := &moduleTree{paths: map[string]string{}, loaded: map[string]module{}}
	for name, deps := range map[string][]string{
		"bridge": {"stp", "llc"}, "stp": {"llc"}, "llc": nil, "veth": nil,
		"a": {"b"}, "b": {"a"}, "broken": {"absent"},
	} {
		tree.paths[name] = name
		tree.loaded[name] = module{name: name, deps: deps}
	}
	order, err := tree.Order([]string{"veth", "bridge", "llc"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range order {
		names = append(names, m.name)
	}
	if diff := cmp.Diff([]string{"veth", "llc", "stp", "bridge"}, names); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for name, want := range map[string]string{"a": "needs itself", "broken": "absent is needed"} {
		if _, err := tree.Order([]string{name}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

func TestAModulesNeedsAreInItsModinfo(t *testing.T) {
	info := "license=GPL\x00depends=stp,ip6-udp-tunnel\x00\x00\x00name=vxlan\x00"
	if diff := cmp.Diff([]string{"stp", "ip6_udp_tunnel"}, parseModinfoDeps([]byte(info))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := parseModinfoDeps([]byte("depends=\x00name=veth\x00")); got != nil {
		t.Errorf("veth needs %q", got)
	}
}

func TestSharedLibrariesAreReadFromLdd(t *testing.T) {
	out := "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f01)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f02)\n"
	got, err := parseLdd(out)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, err := parseLdd("\tlibx.so => not found\n"); err == nil {
		t.Error("a missing library is no error")
	}
}

func TestThePanicIsFoundInTheConsole(t *testing.T) {
	console := "[    1.0] fine\r\n[    2.5] Kernel panic - not syncing: sysrq triggered crash\r\n[    2.6] CPU: 0\r\n"
	if got, want := panicLine([]byte(console)), "Kernel panic - not syncing: sysrq triggered crash"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := panicLine([]byte("[ 1.0] reboot: Power down\n")); got != "" {
		t.Errorf("%q in a console without a panic", got)
	}
}

func FuzzSources(f *testing.F) {
	f.Add("deb [signed-by=/k] http://m/debian bookworm main")
	f.Add("Types: deb\nURIs: http://m\nSuites: x\nSigned-By:\n a\n b\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, parse := range []func(string) ([]source, error){parseSourcesList, parseSourcesDeb822} {
			sources, _ := parse(text)
			for _, s := range sources {
				if len(s.uris) == 0 || len(s.suites) == 0 {
					t.Errorf("%q gives an entry without address or suite: %+v", text, s)
				}
			}
			_, _ = findMirrors(sources, "bookworm")
		}
	})
}
