package initramfs

import (
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// moduleDir and its list are where the agent looks for modules.
const moduleDir = "modules"

// Build writes an initramfs with the agent as its init and with the modules,
// which the agent loads in the order given. The same input gives the same
// bytes.
func Build(w io.Writer, agent []byte, m *Modules, order []string) error {
	a := archive{w: cpio.NewWriter(w)}
	for _, d := range []string{"dev", "proc", "sys", moduleDir} {
		a.add(cpio.Header{Name: d, Mode: cpio.TypeDir | 0o755}, nil)
	}
	// /dev/console, which becomes init's standard files, is in the small
	// initramfs that every kernel has built in.
	a.add(cpio.Header{Name: "init", Mode: cpio.TypeReg | 0o700}, agent)
	var list strings.Builder
	for i, p := range order {
		b, err := m.Read(p)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%s/%02d-%s.ko", moduleDir, i, moduleName(p))
		a.add(cpio.Header{Name: name, Mode: cpio.TypeReg | 0o600}, b)
		fmt.Fprintln(&list, path.Join("/", name))
	}
	a.add(cpio.Header{Name: moduleDir + "/order", Mode: cpio.TypeReg | 0o600}, []byte(list.String()))
	if a.err == nil {
		a.err = a.w.Close()
	}
	if a.err != nil {
		return fmt.Errorf("build the initramfs: %w", a.err)
	}
	return nil
}

// archive keeps the first error.
type archive struct {
	w   *cpio.Writer
	err error
}

func (a *archive) add(h cpio.Header, content []byte) {
	if a.err != nil {
		return
	}
	h.Size = int64(len(content))
	h.Links = 1
	if a.err = a.w.WriteHeader(&h); a.err == nil {
		_, a.err = a.w.Write(content)
	}
}
