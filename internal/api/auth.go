package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

const (
	tokenName  = "api-token"
	tokenBytes = 32

	// AdminUser is the name of the one user there is, as it shows in
	// Knative's creator annotations.
	AdminUser = "skep-admin"
)

// What may be read without a token.
var publicPaths = []string{"/healthz", "/livez", "/readyz", "/version"}

// loadToken reads the administrator's token of dir, and makes it where there
// is none.
func loadToken(dir string) (string, error) {
	path := filepath.Join(dir, tokenName)
	raw, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		token := newToken()
		if err := writeFileAtomic(path, []byte(token+"\n")); err != nil {
			return "", fmt.Errorf("write API token: %w", err)
		}
		return token, nil
	case err != nil:
		return "", fmt.Errorf("read API token: %w", err)
	}
	token := strings.TrimSpace(string(raw))
	if decoded, err := hex.DecodeString(token); err != nil || len(decoded) != tokenBytes {
		return "", fmt.Errorf("API token %s is damaged: remove the file and a new one is made", path)
	}
	return token, nil
}

func newToken() string {
	secret := make([]byte, tokenBytes)
	_, _ = rand.Read(secret) // never fails: see crypto/rand
	return hex.EncodeToString(secret)
}

// newAuthenticator knows the users by token, and lets nobody in without one
// except to the public paths.
func newAuthenticator(users map[string]user.Info) authenticator.Request {
	type known struct {
		digest [sha256.Size]byte
		info   user.Info
	}
	var all []known
	for token, info := range users {
		all = append(all, known{digest: sha256.Sum256([]byte(token)), info: info})
	}
	byToken := authenticator.TokenFunc(func(_ context.Context, token string) (*authenticator.Response, bool, error) {
		// Digests have one length, and comparing them takes as long for a
		// near miss as for a far one.
		digest := sha256.Sum256([]byte(token))
		var found user.Info
		for _, k := range all {
			if subtle.ConstantTimeCompare(k.digest[:], digest[:]) == 1 {
				found = k.info
			}
		}
		if found == nil {
			return nil, false, nil
		}
		return &authenticator.Response{User: found}, true, nil
	})
	var public []apiserver.AnonymousAuthCondition
	for _, path := range publicPaths {
		public = append(public, apiserver.AnonymousAuthCondition{Path: path})
	}
	bearer := bearertoken.New(byToken)
	return union.New(
		authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
			// A wrong token is an answer (401), not an error: strangers do not
			// write our log.
			response, ok, _ := bearer.AuthenticateRequest(r)
			return response, ok, nil
		}),
		anonymous.NewAuthenticator(public),
	)
}

// newAuthorizer lets privileged users do all, and everybody read the public
// paths.
func newAuthorizer() authorizer.Authorizer {
	return authorizer.AuthorizerFunc(func(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
		if a.GetUser() != nil && slices.Contains(a.GetUser().GetGroups(), user.SystemPrivilegedGroup) {
			return authorizer.DecisionAllow, "", nil
		}
		if !a.IsResourceRequest() && a.GetVerb() == "get" && slices.Contains(publicPaths, a.GetPath()) {
			return authorizer.DecisionAllow, "", nil
		}
		return authorizer.DecisionDeny, "only the administrator's token, which is in the kubeconfig, may do this", nil
	})
}
