package e2e

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/admin"
	"github.com/skep-dev/skep/internal/testenv"
)

// skopeo runs skopeo without TLS to the node's registry.
func skopeo(t *testing.T, args ...string) string {
	t.Helper()
	path := testenv.Tool(t, "skopeo", "skopeo")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, tls := range []string{"--src-tls-verify=false", "--dest-tls-verify=false"} {
		if args[0] == "copy" {
			args = append([]string{args[0], tls}, args[1:]...)
		}
	}
	out, err := exec.CommandContext(ctx, path, append([]string{"--insecure-policy"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	s := up(t, "--sandbox", "gvisor")
	digest, err := probe.Digest()
	if err != nil {
		t.Fatal(err)
	}
	repo := s.Endpoints.Registry + "/team/probe"
	skopeo(t, "copy", "--preserve-digests", "oci:"+probeDir, "docker://"+repo+":v1")
	if out := skopeo(t, "inspect", "--tls-verify=false", "docker://"+repo+":v1"); !strings.Contains(out, digest.String()) {
		t.Errorf("skopeo inspect: %s", out)
	}
	// Back again, unchanged.
	back := t.TempDir()
	skopeo(t, "copy", "--preserve-digests", "docker://"+repo+":v1", "oci:"+back)

	byTag, byDigest := unique("tag"), unique("digest")
	s.deployAs(byTag, repo+":v1", "--env", "VERSION=t")
	s.deployAs(byDigest, repo+"@"+digest.String(), "--env", "VERSION=d")
	if r := s.get(byTag, "/"); r.body != "probe t\n" {
		t.Errorf("by tag: %q", r.body)
	}
	if r := s.get(byDigest, "/"); r.body != "probe d\n" {
		t.Errorf("by digest: %q", r.body)
	}
	rev := s.kubectlOK("", "get", "revision", byTag+"-00001", "-o", "jsonpath={.status.containerStatuses[0].imageDigest}")
	if rev != repo+"@"+digest.String() {
		t.Errorf("the revision's imageDigest is %q", rev)
	}

	// Archives.
	if out := s.ok("image", "import", probeTar); !strings.Contains(out, "local/probe:tar") {
		t.Errorf("import of a docker archive: %q", out)
	}
	if out := s.ok("image", "import", probeDir, "--name", "local/probe:layout"); !strings.Contains(out, digest.String()) {
		t.Errorf("import of a layout: %q", out)
	}
	fromTar := unique("archive")
	s.deployAs(fromTar, "local/probe:tar")
	s.get(fromTar, "/")

	images := decode[[]admin.Image](t, s.ok("image", "list", "-o", "json"))
	byRef := map[string]admin.Image{}
	for _, i := range images {
		byRef[i.Ref] = i
	}
	if i := byRef["team/probe:v1"]; i.Digest != digest.String() || !i.InUse || i.Bytes == 0 {
		t.Errorf("image list: %+v", images)
	}
	if out := s.ok("image", "list"); !strings.Contains(out, "team/probe:v1") || !strings.Contains(out, "IN USE") {
		t.Errorf("image list:\n%s", out)
	}

	// What is in use stays, also while nothing runs.
	s.ok("image", "remove", "local/probe:layout") // another name for what is in use
	s.fails(1, []string{"in use"}, "image", "remove", digest.String())
	s.get(byDigest, "/")
	for _, name := range []string{byTag, byDigest, fromTar} {
		s.ok("delete", name)
	}
	eventually(t, "the image to be removable", func() string {
		r := s.run("image", "remove", digest.String())
		if r.Code == 0 {
			return ""
		}
		return r.Stderr
	})
	s.fails(4, []string{"ImagePullFailed"}, "deploy", unique("gone"), "--image", repo+":v1", "--wait-timeout", "60s")
}

// TestMovedTag: a tag that moves does not change what runs.
func TestMovedTag(t *testing.T) {
	t.Parallel()
	s := up(t, "--sandbox", "runc", "--idle-after", "1s")
	ref := s.Endpoints.Registry + "/moved:v1"
	skopeo(t, "copy", "oci:"+probeDir, "docker://"+ref)
	name := s.deploy0("moved", ref)
	s.atZero(name)
	other := strings.TrimSpace(s.ok("image", "build", root+"/functions/hello/go", "--name", "other:v1"))
	skopeo(t, "copy", "docker://"+other, "docker://"+ref)
	if r := s.get(name, "/"); !strings.HasPrefix(r.body, "probe") {
		t.Errorf("after the tag was moved the revision answers %q", r.body)
	}
	// Deployed again under the same tag, it is the new image that runs.
	s.deployAs(name, ref, "--env", "TARGET=again")
	if r := s.get(name, "/"); r.body != "Hello, again!\n" {
		t.Errorf("the new revision answers %q", r.body)
	}
}
