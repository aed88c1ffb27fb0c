package firecracker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// maxTemplate bounds a custom CPU template, in bytes.
const maxTemplate = 1 << 20

// cpuTemplate is a custom CPU template, as far as it is read here.
type cpuTemplate struct {
	CPUID []struct {
		Leaf      string `json:"leaf"`
		Subleaf   string `json:"subleaf"`
		Modifiers []struct {
			Register string `json:"register"`
			Bitmap   string `json:"bitmap"` // "0bx01": the last is bit 0, x is left as it is
		} `json:"modifiers"`
	} `json:"cpuid_modifiers"`
}

// parseTemplate reads a custom CPU template.
func parseTemplate(b []byte) (*cpuTemplate, error) {
	t := &cpuTemplate{}
	if err := json.Unmarshal(b, t); err != nil {
		return nil, fmt.Errorf("it is not JSON of Firecracker's cpu-template-helper: %w", err)
	}
	_, err := t.masked()
	return t, err
}

// masked are the features that guests with the template do not see, by Linux's
// names, sorted.
func (t *cpuTemplate) masked() ([]string, error) {
	var names []string
	for _, c := range t.CPUID {
		leaf, err1 := strconv.ParseUint(c.Leaf, 0, 32)
		subleaf, err2 := strconv.ParseUint(c.Subleaf, 0, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("cpuid_modifiers: %w", err)
		}
		for _, m := range c.Modifiers {
			bits, ok := strings.CutPrefix(m.Bitmap, "0b")
			bits = strings.ReplaceAll(bits, "_", "")
			if !ok || len(bits) > 32 || strings.Trim(bits, "01x") != "" {
				return nil, fmt.Errorf("cpuid_modifiers: leaf %s: the bitmap %.50q is not 0b and up to 32 of 0, 1 and x", c.Leaf, m.Bitmap)
			}
			features := strings.Fields(cpuFeatures[cpuRegister{uint32(leaf), uint32(subleaf), m.Register}])
			for i := range bits {
				bit := len(bits) - 1 - i
				if bits[i] == '0' && bit < len(features) && features[bit] != "-" {
					names = append(names, features[bit])
				}
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// without are the features that are left of a processor's.
func (t *cpuTemplate) without(features []string) ([]string, error) {
	masked, err := t.masked()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(features), func(f string) bool { return slices.Contains(masked, f) }), nil
}

type cpuRegister struct {
	leaf, subleaf uint32
	register      string
}

// cpuFeatures are the names that Linux has in /proc/cpuinfo for the bits that
// the instruction CPUID returns, from bit 0; "-" is none. Sources: Intel's and
// AMD's manuals, CPUID.
var cpuFeatures = map[cpuRegister]string{
	{1, 0, "edx"}: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
	{1, 0, "ecx"}: "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave - avx f16c rdrand hypervisor",
	{7, 0, "ebx"}: "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
	{7, 0, "ecx"}: "- avx512vbmi umip pku ospke waitpkg avx512_vbmi2 user_shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd - -",
	{7, 0, "edx"}: "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect - md_clear - - - serialize - tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 - - flush_l1d arch_capabilities - -",
	{7, 1, "eax"}: "- - - - avx_vnni avx512_bf16",

	{0xd, 1, "eax"}:        "xsaveopt xsavec xgetbv1 xsaves",
	{0x80000001, 0, "ecx"}: "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx - -",
	{0x80000001, 0, "edx"}: "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
}

// compactObject checks a JSON object of at most so many bytes, and returns it
// without its spaces.
func compactObject(b []byte, most int) (json.RawMessage, error) {
	var object map[string]any
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&object); err != nil {
		return nil, fmt.Errorf("it is not a JSON object: %w", err)
	}
	if object == nil {
		return nil, errors.New("it is null, not a JSON object")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is something after the JSON object")
	}
	out := &bytes.Buffer{}
	if err := json.Compact(out, b); err != nil {
		return nil, err
	}
	if out.Len() > most {
		return nil, fmt.Errorf("it has %d bytes, Firecracker takes %d", out.Len(), most)
	}
	return out.Bytes(), nil
}
