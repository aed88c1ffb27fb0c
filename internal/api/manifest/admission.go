package manifest

import (
	"context"

	"go.uber.org/zap"
	"knative.dev/pkg/logging"
	asconfig "knative.dev/serving/pkg/autoscaler/config"

	"knative.dev/serving/pkg/apis/config"
)

// features are what Skep allows beyond Knative's defaults.
var features = map[string]string{
	// A service may ask for a sandbox by name.
	config.FeaturePodSpecRuntimeClassName: string(config.Enabled),
}

// knative is the configuration that Knative keeps in config maps.
var knative = func() *config.Config {
	// Neither can fail on these constants; the tests see to it.
	defaults, _ := config.NewDefaultsConfigFromMap(map[string]string{})
	feature, _ := config.NewFeaturesConfigFromMap(features)
	autoscaler, _ := asconfig.NewConfigFromMap(map[string]string{})
	return &config.Config{Defaults: defaults, Features: feature, Autoscaler: autoscaler}
}()

var quiet = zap.NewNop().Sugar()

// WithConfig returns a context under which Knative's SetDefaults and Validate
// apply Skep's configuration of Knative.
func WithConfig(ctx context.Context) context.Context {
	return logging.WithLogger(config.ToContext(ctx, knative), quiet)
}
