package snapfaas

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

// dependent are apps that need something from their language's registry, and
// what they answer to {"text":"2 days"}.
var dependent = map[string]struct {
	tool, pkg string
	files     map[string]string
	want      string
}{
	"nodejs": {"npm", "npm", map[string]string{
		"package.json": `{"name":"app","version":"1.0.0","dependencies":{"ms":"2.1.3"}}`,
		"workload.js":  "const ms = require('ms');\nexports.handle = async (o) => ({ got: ms(o.text) });\n",
	}, `{"got":172800000}`},
	"go": {"go", "golang-go", map[string]string{
		"go.mod": "module app\n\ngo 1.24\n\nrequire github.com/google/uuid v1.6.0\n",
		"go.sum": "github.com/google/uuid v1.6.0 h1:NIvaJDMOsjHA8n1jAhLSgzrAzy1Hgr+hNrb57e+94F0=\n" +
			"github.com/google/uuid v1.6.0/go.mod h1:TIyPZe4MgqvfeYDBFedMoGGpEw/LqOeaOT+nhxU+yHo=\n",
		"main.go": goApp,
	}, `{"got":"93e36018-2e7f-52a1-a215-aa7dc5bc6f0b"}`},
	"java": {"mvn", "maven", map[string]string{
		"pom.xml":                     javaPom,
		"src/main/java/Workload.java": javaApp,
	}, `{"got":"MiBkYXlz"}`},
}

const goApp = `package main

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"os"

	"github.com/google/uuid"
)

func send(v any) {
	b, _ := json.Marshal(v)
	_, _ = os.Stdout.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
}

func main() {
	send(map[string]string{"type": "app-ready"})
	for {
		var n uint32
		if binary.Read(os.Stdin, binary.BigEndian, &n) != nil {
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(os.Stdin, b); err != nil {
			return
		}
		var m struct{ Payload struct{ Text string } }
		_ = json.Unmarshal(b, &m)
		got := uuid.NewSHA1(uuid.NameSpaceDNS, []byte(m.Payload.Text)).String()
		send(map[string]any{"type": "response", "payload": map[string]string{"got": got}})
	}
}
`

const javaPom = `<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>x</groupId><artifactId>app</artifactId><version>1</version>
  <properties>
    <maven.compiler.release>17</maven.compiler.release>
    <project.build.sourceEncoding>UTF-8</project.build.sourceEncoding>
  </properties>
  <dependencies>
    <dependency><groupId>commons-codec</groupId><artifactId>commons-codec</artifactId><version>1.17.1</version></dependency>
  </dependencies>
  <build><plugins>
    <plugin><groupId>org.apache.maven.plugins</groupId><artifactId>maven-jar-plugin</artifactId><version>3.4.2</version></plugin>
    <plugin><groupId>org.apache.maven.plugins</groupId><artifactId>maven-compiler-plugin</artifactId><version>3.13.0</version></plugin>
  </plugins></build>
</project>
`

const javaApp = `import java.util.Map;
import org.apache.commons.codec.binary.Base64;

public class Workload {
    public static Object handle(Object o) {
        String text = (String) ((Map<?, ?>) o).get("text");
        return Map.of("got", Base64.encodeBase64String(text.getBytes()));
    }
}
`

// TestLanguages takes the other languages, with apps that have dependencies,
// through a boot, a language snapshot, a diff and a restore from both, on
// gVisor, and with SKEP_SNAPFAAS_ALL=1 on QEMU, too, which takes minutes without
// KVM. Python is in TestWalkthrough.
func TestLanguages(t *testing.T) {
	sandboxes := []string{"gvisor"}
	if os.Getenv("SKEP_SNAPFAAS_ALL") != "" {
		sandboxes = append(sandboxes, "qemu")
	}
	w := newWorld(t)
	for _, name := range slices.Sorted(maps.Keys(dependent)) {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.t = t
			app := dependent[name]
			testenv.Tool(t, app.tool, app.pkg)
			for file, text := range app.files {
				w.write(name+"/"+file, text)
			}
			w.mkdir("rootfs", "appfs")
			w.run("", "skep runtime build "+name+" rootfs/"+name)
			w.run("", "skep app build "+name+" appfs/"+name)
			for _, sandbox := range sandboxes {
				base, diff := sandbox+"/base/"+name, sandbox+"/diff/"+name
				w.mkdir(base, diff)
				machine := "singlevm --sandbox " + sandbox + " --mem_size 256 --rootfs rootfs/" + name
				whole := machine + " --appfs appfs/" + name
				w.run("", machine+" --dump_dir "+base+" --force_exit")
				w.run("", whole+" --load_dir "+base+" --dump_dir "+diff+" --force_exit")
				for _, line := range []string{whole, whole + " --load_dir " + base, whole + " --load_dir " + base + "," + diff} {
					got, _ := w.run("{\"text\":\"2 days\"}\n{\"payload\":{\"text\":\"2 days\"}}\n", line)
					if want := strings.Repeat(app.want+"\n", 2); got != want {
						t.Errorf("%s: %q, want %q", line, got, want)
					}
				}
			}
		})
	}
}
