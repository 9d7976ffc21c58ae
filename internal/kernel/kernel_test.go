package kernel

import (
	"errors"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel takes attributes by their offsets in union bpf_attr: a field in
// another place would be read as another field.
func TestAttributesLieWhereTheKernelReadsThem(t *testing.T) {
	var create linkCreateAttr
	var update linkUpdateAttr
	var info infoAttr
	var id idAttr
	var obj objAttr
	var types btfLoadAttr
	var newMap mapCreateAttr
	var element mapElementAttr
	var load progLoadAttr
	for name, c := range map[string][2]uintptr{
		"link_create.prog_fd":      {unsafe.Offsetof(create.progFD), 0},
		"link_create.target_fd":    {unsafe.Offsetof(create.targetFD), 4},
		"link_create.attach_type":  {unsafe.Offsetof(create.attachType), 8},
		"link_create.flags":        {unsafe.Offsetof(create.flags), 12},
		"link_update.link_fd":      {unsafe.Offsetof(update.linkFD), 0},
		"link_update.new_prog_fd":  {unsafe.Offsetof(update.newProgFD), 4},
		"link_update.flags":        {unsafe.Offsetof(update.flags), 8},
		"link_update.old_prog_fd":  {unsafe.Offsetof(update.oldProgFD), 12},
		"info.bpf_fd":              {unsafe.Offsetof(info.fd), 0},
		"info.info_len":            {unsafe.Offsetof(info.size), 4},
		"info.info":                {unsafe.Offsetof(info.info), 8},
		"get_id.start_id":          {unsafe.Offsetof(id.id), 0},
		"get_id.next_id":           {unsafe.Offsetof(id.nextID), 4},
		"get_id.open_flags":        {unsafe.Offsetof(id.flags), 8},
		"obj.pathname":             {unsafe.Offsetof(obj.path), 0},
		"obj.bpf_fd":               {unsafe.Offsetof(obj.fd), 8},
		"obj.file_flags":           {unsafe.Offsetof(obj.flags), 12},
		"btf_load.btf":             {unsafe.Offsetof(types.btf), 0},
		"btf_load.btf_size":        {unsafe.Offsetof(types.size), 16},
		"map_create.max_entries":   {unsafe.Offsetof(newMap.maxEntries), 12},
		"map_create.map_flags":     {unsafe.Offsetof(newMap.flags), 16},
		"map_create.map_name":      {unsafe.Offsetof(newMap.name), 28},
		"map_elem.key":             {unsafe.Offsetof(element.key), 8},
		"map_elem.value":           {unsafe.Offsetof(element.value), 16},
		"prog_load.insns":          {unsafe.Offsetof(load.instructions), 8},
		"prog_load.license":        {unsafe.Offsetof(load.license), 16},
		"prog_load.prog_flags":     {unsafe.Offsetof(load.flags), 44},
		"prog_load.prog_name":      {unsafe.Offsetof(load.name), 48},
		"prog_load.prog_ifindex":   {unsafe.Offsetof(load.ifindex), 64},
		"prog_load.prog_btf_fd":    {unsafe.Offsetof(load.types), 72},
		"prog_load.func_info":      {unsafe.Offsetof(load.functions), 80},
		"prog_load.func_info_cnt":  {unsafe.Offsetof(load.functionCount), 88},
		"the size of obj":          {unsafe.Sizeof(obj), 16},
		"the size of link_update":  {unsafe.Sizeof(update), 16},
		"the size of info by fd":   {unsafe.Sizeof(info), 16},
		"the size of get by an id": {unsafe.Sizeof(id), 12},
	} {
		if c[0] != c[1] {
			t.Errorf("%s is %d, want %d", name, c[0], c[1])
		}
	}
}

func TestADescriptorOfSomethingElseIsNoLink(t *testing.T) {
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, fd := range []FD{FD(file.Fd()), -1, 1 << 20} {
		if IsLink(fd) {
			t.Errorf("descriptor %d is a link", fd)
		}
	}
}

func TestAPathWithANULByteIsNotCutOff(t *testing.T) {
	if err := Pin(-1, "/sys/fs/bpf/a\x00b"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("pin: %v", err)
	}
	if _, err := OpenPin("/sys/fs/bpf/a\x00b"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("open: %v", err)
	}
}

func TestACopyIsClosedOnExec(t *testing.T) {
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd, err := FD(file.Fd()).Dup()
	if err != nil {
		t.Fatal(err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 || fd < 3 {
		t.Errorf("descriptor %d has flags %#x (%v)", fd, flags, err)
	}
	if err := fd.Close(); err != nil {
		t.Error(err)
	}
	if err := fd.Close(); !errors.Is(err, unix.EBADF) {
		t.Errorf("closed again: %v", err)
	}
}
