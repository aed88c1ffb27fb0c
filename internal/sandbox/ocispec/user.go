package ocispec

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/erofs/go-erofs"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultPath is the PATH of a process whose image sets none.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// maxUserFile bounds what is read of an image's passwd and group files.
const maxUserFile = 4 << 20

// OpenImage opens an EROFS image to look into it, without mounting it.
func OpenImage(path string) (fs.FS, io.Closer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("rootfs: %w", err)
	}
	image, err := erofs.Open(f)
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("rootfs: %s is not an EROFS image: %w", path, err)
	}
	return image, f, nil
}

// ResolveUser resolves the user of an OCI image's config ("", "uid",
// "uid:gid", "name", "name:group", "uid:group") with the image's own passwd
// and group files. It also returns the user's home directory.
func ResolveUser(image fs.FS, spec string) (u specs.User, home string, err error) {
	passwd, err := openUserFile(image, "etc/passwd")
	if err != nil {
		return u, "", err
	}
	defer passwd.Close()
	group, err := openUserFile(image, "etc/group")
	if err != nil {
		return u, "", err
	}
	defer group.Close()

	eu, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, passwd, group)
	userName, groupName, _ := strings.Cut(spec, ":")
	switch {
	case errors.Is(err, user.ErrNoPasswdEntries):
		return u, "", fmt.Errorf("user %q not found in the image's /etc/passwd", userName)
	case errors.Is(err, user.ErrNoGroupEntries):
		return u, "", fmt.Errorf("group %q not found in the image's /etc/group", groupName)
	case err != nil:
		return u, "", fmt.Errorf("user %q: %w", spec, err)
	}
	u.UID, u.GID = uint32(eu.Uid), uint32(eu.Gid)
	for _, g := range eu.Sgids {
		if g >= 0 && !slices.Contains(u.AdditionalGids, uint32(g)) {
			u.AdditionalGids = append(u.AdditionalGids, uint32(g))
		}
	}
	return u, eu.Home, nil
}

// openUserFile opens a file of the image, which may lack it.
func openUserFile(image fs.FS, name string) (io.ReadCloser, error) {
	f, err := image.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return io.NopCloser(strings.NewReader("")), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the image's /%s: %w", name, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(f, maxUserFile), f}, nil
}

// environment adds what every process may expect and the image did not set.
func environment(env []string, home, hostname string) []string {
	out := slices.Clone(env)
	for _, d := range []struct{ key, value string }{{"PATH", DefaultPath}, {"HOME", home}, {"HOSTNAME", hostname}} {
		set := slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, d.key+"=") })
		if !set && d.value != "" {
			out = append(out, d.key+"="+d.value)
		}
	}
	return out
}
