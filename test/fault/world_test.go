package fault

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	v1 "knative.dev/serving/pkg/apis/serving/v1"
	"knative.dev/serving/pkg/client/clientset/versioned"
	servingclient "knative.dev/serving/pkg/client/clientset/versioned/typed/serving/v1"

	"github.com/skep-dev/skep/internal/serving"
)

// absent is the version of a service that does not exist.
const absent = 0

// model is what must be true of one service, from what its API answered.
type model struct {
	name, driver, image string

	mu sync.Mutex
	// maybe are the versions that the service may have: one after an answer,
	// two while a change is on its way or its answer was lost.
	maybe []int
	next  int // version that was never used
	// answers are the versions that may answer requests, if any: the one that
	// was ready last, and those deployed since.
	answers []int
}

func (m *model) begin(version int) (from int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	from = m.maybe[0]
	m.maybe = []int{from, version}
	if version == absent {
		m.answers = nil
	} else if len(m.answers) > 0 {
		m.answers = append(m.answers, version)
	}
	return from
}

// end tells how the change went.
func (m *model) end(version, from int, acknowledged, refused bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case acknowledged:
		m.maybe = []int{version}
	case refused:
		m.maybe = []int{from}
	}
}

// ready notes that the revision of a version was reported ready.
func (m *model) ready(version int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.Contains(m.maybe, version) && !slices.Contains(m.maybe, absent) {
		m.answers = append([]int{version}, m.maybe...)
	}
}

// found compares what a restarted daemon has with what it may have.
func (m *model) found(version int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.maybe, version) {
		return fmt.Errorf("service %s: has version %d, its acknowledged versions are %v (0 is deleted)", m.name, version, m.maybe)
	}
	m.maybe = []int{version}
	if version == absent {
		m.answers = nil
	}
	return nil
}

func (m *model) mayAnswer() []int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.answers)
}

func (m *model) exists() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.maybe) == 1 && m.maybe[0] != absent
}

// client of the daemon that runs now.
func client(kubeconfig string) (servingclient.ServiceInterface, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.QPS, cfg.Burst = 1000, 1000
	c, err := versioned.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	return c.ServingV1().Services("default"), nil
}

// change makes one random change of the service and notes the answer.
func (m *model) change(ctx context.Context, api servingclient.ServiceInterface, rnd *rand.Rand) {
	m.mu.Lock()
	m.next++
	version, now := m.next, m.maybe[0]
	m.mu.Unlock()
	if now != absent && rnd.IntN(4) == 0 {
		version = absent
	}
	from := m.begin(version)
	var err error
	switch {
	case now == absent:
		_, err = api.Create(ctx, m.service(version), metav1.CreateOptions{})
	case version == absent:
		err = api.Delete(ctx, m.name, metav1.DeleteOptions{})
	default:
		var s *v1.Service
		if s, err = api.Get(ctx, m.name, metav1.GetOptions{}); err != nil {
			m.end(version, from, false, true) // nothing was asked for
			return
		}
		s.Spec.Template.Spec.Containers[0].Env[0].Value = target(version)
		_, err = api.Update(ctx, s, metav1.UpdateOptions{})
	}
	m.end(version, from, err == nil, apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err))
}

func target(version int) string { return fmt.Sprintf("v%d", version) }

func (m *model) service(version int) *v1.Service {
	s := &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: m.name, Namespace: "default"}}
	s.Spec.Template.Annotations = map[string]string{serving.SandboxAnnotation: m.driver}
	s.Spec.Template.Spec.Containers = []corev1.Container{{
		Image: m.image, Env: []corev1.EnvVar{{Name: "TARGET", Value: target(version)}},
	}}
	return s
}

// versionOf reads a service from the API.
func versionOf(ctx context.Context, api servingclient.ServiceInterface, name string) (version int, ready bool, err error) {
	s, err := api.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && s.DeletionTimestamp != nil {
		return absent, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	_, err = fmt.Sscanf(s.Spec.Template.Spec.Containers[0].Env[0].Value, "v%d", &version)
	return version, s.IsReady(), err
}

// pause waits for a random time up to most, or until ctx ends.
func pause(ctx context.Context, rnd *rand.Rand, most time.Duration) {
	t := time.NewTimer(time.Duration(rnd.Int64N(int64(most) + 1)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
