package erofs

import (
	"fmt"
	"strings"
)

// inode is a file of any type. Several dentries may name it.
type inode struct {
	mode       uint16
	uid, gid   uint32
	mtime      int64
	mtimeNsec  uint32
	nlink      uint32
	rdev       uint32
	target     string // symlink
	xattrs     []xattr
	size       int64  // regular file
	block      uint32 // regular file: first data block
	dir        *directory
	nid        uint64 // assigned by layOut
	xattrSize  int
	inline     bool
	dataBlock  uint32 // directory or symlink that is not inline
	dataLength int64  // directory or symlink
}

// directory is what only directories have.
type directory struct {
	parent  *inode // of the root: itself
	depth   int
	entries map[string]*dentry
	// touched is the newest layer that put something in here or below.
	touched int
	sorted  []*dentry // assigned by layOut
}

// dentry is a name in a directory.
type dentry struct {
	name  string
	inode *inode
	layer int // that made the name
}

func (n *inode) isDir() bool { return n.dir != nil }

func newDir(parent *inode, layer int) *inode {
	n := &inode{mode: modeDir | 0o755, nlink: 1}
	n.dir = &directory{parent: parent, touched: layer}
	if parent == nil {
		n.dir.parent = n
	} else {
		n.dir.depth = parent.dir.depth + 1
	}
	return n
}

// tree is the merged file system while layers are applied.
type tree struct {
	root  *inode
	layer int // being applied, from 1
	use   usage
	freed func(*inode) // told of regular files that lost their last name
}

// splitPath returns a tar entry's path as its components; the image's root
// has none. A leading slash means the image's root, as builders such as ko
// write it; a path with ".." has no meaning in a layer and is refused.
func splitPath(p string) ([]string, error) {
	if len(p) > maxPath {
		return nil, fmt.Errorf("%w: path of %d bytes, at most %d are allowed: %.60q", ErrBadLayer, len(p), maxPath, p)
	}
	var parts []string
	for part := range strings.SplitSeq(p, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return nil, fmt.Errorf("%w: path %q contains \"..\"", ErrBadLayer, p)
		case len(part) > maxName:
			return nil, fmt.Errorf("%w: a name in path %.60q... has %d bytes, at most %d are allowed", ErrBadLayer, p, len(part), maxName)
		case strings.IndexByte(part, 0) >= 0:
			return nil, fmt.Errorf("%w: path %q contains a NUL byte", ErrBadLayer, p)
		}
		parts = append(parts, part)
	}
	return parts, nil
}

// resolve walks to the directory of the given components, following
// symlinks within the image as a container's own kernel would. With create,
// what is missing (or is not a directory) becomes one; else it returns nil.
func (t *tree) resolve(parts []string, create bool) (*inode, error) {
	const maxSteps = 4096 // components, over all links
	const maxLinks = 40   // as the kernel
	todo := parts
	dir := t.root
	links := 0
	for steps := 0; len(todo) > 0; steps++ {
		if steps > maxSteps {
			return nil, fmt.Errorf("%w: path %q passes too many symlinks", ErrBadLayer, strings.Join(parts, "/"))
		}
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..": // of a symlink's target; the root's parent is the root
			dir = dir.dir.parent
			continue
		}
		d := dir.dir.entries[name]
		switch {
		case d != nil && d.inode.isDir():
			dir = d.inode
		case d != nil && d.inode.mode&modeType == modeLink:
			if links++; links > maxLinks {
				return nil, fmt.Errorf("%w: path %q passes too many symlinks", ErrBadLayer, strings.Join(parts, "/"))
			}
			if strings.HasPrefix(d.inode.target, "/") {
				dir = t.root
			}
			todo = append(strings.Split(d.inode.target, "/"), todo...)
		case !create:
			return nil, nil
		default:
			if len(name) > maxName {
				return nil, fmt.Errorf("%w: path %q leads through a symlink with a name of %d bytes", ErrBadLayer, strings.Join(parts, "/"), len(name))
			}
			if err := t.use.addFile(); err != nil {
				return nil, err
			}
			n := newDir(dir, t.layer)
			if err := t.link(dir, name, n); err != nil {
				return nil, err
			}
			dir = n
		}
	}
	return dir, nil
}

// link gives n a name, in place of whatever had it.
func (t *tree) link(dir *inode, name string, n *inode) error {
	if dir.dir.depth >= t.use.Depth {
		return fmt.Errorf("%w: directories nested deeper than %d", ErrLimit, t.use.Depth)
	}
	if err := t.use.addMeta(len(name)); err != nil {
		return err
	}
	n.nlink++
	if old := dir.dir.entries[name]; old != nil {
		t.unlink(dir, old)
	}
	if dir.dir.entries == nil {
		dir.dir.entries = make(map[string]*dentry)
	}
	dir.dir.entries[name] = &dentry{name: name, inode: n, layer: t.layer}
	if n.isDir() {
		n.nlink = 2 // its name and its own "."
		dir.nlink++ // its ".."
	}
	t.touch(dir)
	return nil
}

func (t *tree) touch(dir *inode) {
	for dir.dir.touched != t.layer {
		dir.dir.touched = t.layer
		dir = dir.dir.parent
	}
}

// unlink removes a name and, of a directory, everything below.
func (t *tree) unlink(dir *inode, d *dentry) {
	delete(dir.dir.entries, d.name)
	n := d.inode
	if n.isDir() {
		dir.nlink--
		for _, c := range n.dir.entries {
			t.unlink(n, c)
		}
		return
	}
	if n.nlink--; n.nlink == 0 && n.size > 0 {
		t.freed(n)
	}
}

// whiteout removes a name as far as it comes from layers below this one.
func (t *tree) whiteout(dir *inode, name string) {
	d := dir.dir.entries[name]
	switch {
	case d == nil:
	case d.inode.isDir() && d.inode.dir.touched == t.layer:
		t.opaque(d.inode)
	case d.layer < t.layer:
		t.unlink(dir, d)
	}
}

// opaque removes what layers below this one put into a directory.
func (t *tree) opaque(dir *inode) {
	for name := range dir.dir.entries {
		t.whiteout(dir, name)
	}
}
