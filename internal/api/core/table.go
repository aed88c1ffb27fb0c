package core

import (
	"context"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apiserver/pkg/registry/rest"
)

// columns describes a table: "Name" or "Name:type", between the object's name
// and its age.
func columns(names ...string) []metav1.TableColumnDefinition {
	all := []metav1.TableColumnDefinition{{Name: "Name", Type: "string", Format: "name"}}
	for _, name := range names {
		name, kind, typed := strings.Cut(name, ":")
		if !typed {
			kind = "string"
		}
		all = append(all, metav1.TableColumnDefinition{Name: name, Type: kind})
	}
	return append(all, metav1.TableColumnDefinition{Name: "Age", Type: "string"})
}

// table prints a resource as kubectl shows it.
type table struct{ resource }

var _ rest.TableConvertor = table{}

func (t table) ConvertToTable(_ context.Context, object, options runtime.Object) (*metav1.Table, error) {
	out := &metav1.Table{}
	if o, ok := options.(*metav1.TableOptions); !ok || !o.NoHeaders {
		out.ColumnDefinitions = t.columns
	}
	row := func(obj runtime.Object) error {
		accessor, err := meta.Accessor(obj)
		if err != nil {
			return fmt.Errorf("print %T: %w", obj, err)
		}
		cells := append([]any{accessor.GetName()}, t.cells(obj)...)
		cells = append(cells, age(accessor.GetCreationTimestamp()))
		out.Rows = append(out.Rows, metav1.TableRow{Cells: cells, Object: runtime.RawExtension{Object: obj}})
		return nil
	}
	if !meta.IsListType(object) {
		return out, row(object)
	}
	if list, err := meta.ListAccessor(object); err == nil {
		out.ResourceVersion = list.GetResourceVersion()
		out.Continue = list.GetContinue()
		out.RemainingItemCount = list.GetRemainingItemCount()
	}
	return out, meta.EachListItem(object, row)
}

func age(since metav1.Time) string {
	if since.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(time.Since(since.Time))
}
