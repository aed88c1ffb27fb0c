package build

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

// pyServer is a program that answers every GET with what answer() returns.
func pyServer(answer string) string { return fmt.Sprintf(serverPy, answer) }

const serverPy = `
import os, http.server, socketserver
%s
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        b = str(answer()).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(b))); self.end_headers(); self.wfile.write(b)
socketserver.ThreadingTCPServer(("0.0.0.0", int(os.environ["PORT"])), H).serve_forever()
`

// TestDependencies builds functions with dependencies from the language's own
// registry, or Debian's, and lets them use these.
func TestDependencies(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes: installs from Debian, PyPI, npm and Maven")
	}
	testenv.Root(t)
	testenv.Tool(t, "mmdebstrap", "mmdebstrap")
	for _, tc := range []struct {
		name, tool, pkg string
		files           map[string]string
		want            string
	}{
		{"pip", "pip3", "python3-pip", map[string]string{
			"main.py":          pyServer("import idna, yaml\ndef answer(): return idna.encode('bücher.de'), yaml.__with_libyaml__"),
			"requirements.txt": "idna==3.10\npyyaml==6.0.2\n",
		}, "(b'xn--bcher-kva.de', True)"},
		{"apt", "mmdebstrap", "mmdebstrap", map[string]string{
			"main.py": pyServer("import numpy\ndef answer(): return int(numpy.linalg.det(numpy.eye(3) * 2) + 0.5)"),
			"apt.txt": "# linear algebra\npython3-numpy\n",
		}, "8"},
		{"npm", "npm", "npm", map[string]string{
			"package.json": `{"scripts":{"start":"node web.js --greet"},"dependencies":{"ms":"2.1.3"}}`,
			"web.js":       "const ms = require('ms'); require('http').createServer((q, s) => s.end(process.argv[2] + ms('2 days'))).listen(process.env.PORT, '0.0.0.0');",
		}, "--greet172800000"},
		{"maven", "mvn", "maven", map[string]string{
			"pom.xml":                  pom,
			"src/main/java/x/Web.java": mavenWeb,
		}, "U29tZSBob25leQ"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testenv.Tool(t, tc.tool, tc.pkg)
			dir := folder(t, tc.files)
			img := mustBuild(t, Options{Dir: dir})
			checkLayers(t, img)
			url := start(t, img, rootOf(t, img))
			resp, err := http.Get(url + "/")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
			if err != nil || string(got) != tc.want {
				t.Errorf("answer %q, %v; want %q", got, err, tc.want)
			}
			again := mustBuild(t, Options{Dir: dir})
			a, aerr := img.Digest()
			b, berr := again.Digest()
			if aerr != nil || berr != nil || a != b {
				t.Errorf("the same source gave %s and %s", a, b)
			}
		})
	}
}

const pom = `<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>x</groupId><artifactId>web</artifactId><version>1</version>
  <properties>
    <maven.compiler.release>17</maven.compiler.release>
    <project.build.sourceEncoding>UTF-8</project.build.sourceEncoding>
  </properties>
  <dependencies>
    <dependency><groupId>commons-codec</groupId><artifactId>commons-codec</artifactId><version>1.17.1</version></dependency>
  </dependencies>
  <build><plugins>
    <plugin><groupId>org.apache.maven.plugins</groupId><artifactId>maven-jar-plugin</artifactId><version>3.4.2</version>
      <configuration><archive><manifest><mainClass>x.Web</mainClass></manifest></archive></configuration></plugin>
    <plugin><groupId>org.apache.maven.plugins</groupId><artifactId>maven-compiler-plugin</artifactId><version>3.13.0</version></plugin>
  </plugins></build>
</project>
`

const mavenWeb = `package x;
public class Web {
    public static void main(String[] args) throws Exception {
        var s = com.sun.net.httpserver.HttpServer.create(
            new java.net.InetSocketAddress("0.0.0.0", Integer.parseInt(System.getenv("PORT"))), 0);
        s.createContext("/", x -> {
            byte[] b = org.apache.commons.codec.binary.Base64.encodeBase64URLSafe("Some honey".getBytes());
            x.sendResponseHeaders(200, b.length);
            x.getResponseBody().write(b);
            x.close();
        });
        s.start();
    }
}
`
