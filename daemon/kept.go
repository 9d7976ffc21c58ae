package daemon

import (
	"context"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/object"
)

// kept are the maps that clients have been given descriptors of. Who keeps those when
// the member has ended has the kernel's memory still, and that counts.
type kept struct {
	mutex sync.Mutex
	byUID map[int]map[uint32]*keptMap // by the map's id
}

type keptMap struct {
	of    memberKey
	bytes uint64
	// gone is when the member was first seen to be.
	gone time.Time
}

// patience is how long the kernel may take to let go of a map, and the watcher to take
// a member out, until somebody else must be keeping it.
const patience = time.Second

// add remembers a map of a member, which a user is about to be given.
func (k *kept) add(uid int, of memberKey, f *os.File) error {
	fd, err := kernel.FD(f.Fd()).Dup()
	if err != nil {
		return err
	}
	m, err := ebpf.NewMapFromFD(int(fd)) // which owns it from then on
	if err != nil {
		return err
	}
	defer m.Close()
	id, err := kernel.MapID(kernel.FD(m.FD()))
	if err != nil {
		return err
	}
	bytes, err := object.MapMemory(m.Type(), m.KeySize(), m.ValueSize(), m.MaxEntries())
	if err != nil {
		return err
	}
	k.mutex.Lock()
	defer k.mutex.Unlock()
	if k.byUID == nil {
		k.byUID = map[int]map[uint32]*keptMap{}
	}
	if k.byUID[uid] == nil {
		k.byUID[uid] = map[uint32]*keptMap{}
	}
	k.byUID[uid][id] = &keptMap{of: of, bytes: bytes}
	return nil
}

// memory is what a user's maps take whose members have ended, and fresh tells that some
// of those may be about to go.
func (k *kept) memory(uid int, lives map[memberKey]bool) (bytes uint64, fresh bool) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	for id, m := range k.byUID[uid] {
		if lives[m.of] {
			m.gone = time.Time{}
			continue
		}
		if exists, err := kernel.MapExists(id); err == nil && !exists {
			k.drop(uid, id)
			continue
		}
		if m.gone.IsZero() {
			m.gone = time.Now()
		}
		fresh = fresh || time.Since(m.gone) < patience
		bytes += m.bytes
	}
	return bytes, fresh
}

func (k *kept) drop(uid int, id uint32) {
	delete(k.byUID[uid], id)
	if len(k.byUID[uid]) == 0 {
		delete(k.byUID, uid)
	}
}

// forget forgets what nobody keeps.
func (k *kept) forget(lives map[memberKey]bool) {
	for _, uid := range k.users() {
		k.memory(uid, lives)
	}
}

// users are those that have been given maps.
func (k *kept) users() []int {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	return slices.Collect(maps.Keys(k.byUID))
}

// settle waits until what a user has let go of is gone, as far as it is about to.
func (d *Daemon) settle(ctx context.Context, uid int) error {
	for slices.Contains(d.kept.users(), uid) {
		chains, err := d.arbiter.Chains()
		if err != nil {
			return err
		}
		if _, fresh := d.kept.memory(uid, alive(chains)); !fresh {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// alive are the members that have not ended.
func alive(chains []arbiter.ChainState) map[memberKey]bool {
	lives := map[memberKey]bool{}
	for _, c := range chains {
		for _, m := range c.Members {
			if !m.Ended {
				lives[memberKey{c.Entry, m.ID}] = true
			}
		}
	}
	return lives
}
