package admin

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// sectionOf finds the sections of the page about the interface, one for each route.
var sectionOf = regexp.MustCompile(`(?m)^### ((?:GET|POST) /\S+)$`)

// TestEveryRouteIsDocumented holds docs/admin-api.md to the routes, in both directions.
func TestEveryRouteIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../../../docs/admin-api.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	parts := sectionOf.FindAllStringSubmatchIndex(string(page), -1)
	for i, at := range parts {
		route, end := string(page[at[2]:at[3]]), len(page)
		if i+1 < len(parts) {
			end = parts[i+1][0]
		}
		if slices.Contains(documented, route) {
			t.Errorf("%s is there twice", route)
		}
		documented = append(documented, route)
		path, _, _ := strings.Cut(strings.Fields(route)[1], "{")
		if text := string(page[at[1]:end]); !strings.Contains(text, "internal") && (!strings.Contains(text, "$ curl ") || !strings.Contains(text, path)) {
			t.Errorf("%s has no example", route)
		}
	}
	served := NewServer(nil, nil, nil).patterns
	if len(served) < 25 {
		t.Fatalf("the server has %d routes, want at least 25", len(served))
	}
	slices.Sort(served)
	slices.Sort(documented)
	if !slices.Equal(served, documented) {
		for _, r := range served {
			if !slices.Contains(documented, r) {
				t.Errorf("docs/admin-api.md lacks %s", r)
			}
		}
		for _, r := range documented {
			if !slices.Contains(served, r) {
				t.Errorf("docs/admin-api.md has %s, which is not served", r)
			}
		}
	}
}
