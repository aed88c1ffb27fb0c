package erofs

import (
	"encoding/binary"
	"fmt"
	"sort"
	"strings"
)

// xattr is an extended attribute in its on-disk form.
type xattr struct {
	index uint8
	name  string // without the prefix that index stands for
	value string
}

const paxXattr = "SCHILY.xattr."

// parseXattrs takes the extended attributes from PAX records. Left out are
// those that mean something only on the machine that built the image
// (labels of its security modules) or that would steer our overlay file
// system (trusted.overlay.*), which an image must not.
func parseXattrs(records map[string]string, limit int) ([]xattr, error) {
	var all []xattr
	size := 0
	for key, value := range records {
		full, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		x, ok := splitXattr(full)
		if !ok {
			continue
		}
		if x.name == "" && x.index != 2 && x.index != 3 || len(x.name) > maxName {
			return nil, fmt.Errorf("%w: extended attribute name %.60q", ErrBadLayer, full)
		}
		if size += len(full) + len(value); size > limit || len(value) > 1<<16-1 {
			return nil, fmt.Errorf("%w: extended attributes take more than %d bytes", ErrLimit, limit)
		}
		x.value = value
		all = append(all, x)
	}
	sort.Slice(all, func(i, j int) bool {
		if all[i].index != all[j].index {
			return all[i].index < all[j].index
		}
		return all[i].name < all[j].name
	})
	return all, nil
}

func splitXattr(full string) (xattr, bool) {
	switch {
	case full == "system.posix_acl_access":
		return xattr{index: 2}, true
	case full == "system.posix_acl_default":
		return xattr{index: 3}, true
	case full == "security.capability":
		return xattr{index: 6, name: "capability"}, true
	case strings.HasPrefix(full, "user.overlay."), strings.HasPrefix(full, "trusted.overlay."):
		return xattr{}, false
	case strings.HasPrefix(full, "user."):
		return xattr{index: 1, name: full[len("user."):]}, true
	case strings.HasPrefix(full, "trusted."):
		return xattr{index: 4, name: full[len("trusted."):]}, true
	}
	return xattr{}, false
}

// xattrAreaSize is the on-disk size of a file's attributes, 0 without any.
func xattrAreaSize(all []xattr) int {
	if len(all) == 0 {
		return 0
	}
	size := xattrHead
	for _, x := range all {
		size += int(align(int64(xattrEntry+len(x.name)+len(x.value)), 4))
	}
	return size
}

// appendXattrs appends the on-disk form of xattrAreaSize bytes.
func appendXattrs(b []byte, all []xattr) []byte {
	b = append(b, make([]byte, xattrHead)...)
	for _, x := range all {
		b = append(b, uint8(len(x.name)), x.index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(x.value)))
		b = append(b, x.name...)
		b = append(b, x.value...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return b
}
