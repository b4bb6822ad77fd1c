// SPDX-License-Identifier: Apache-2.0

// Package tap prints the Test Anything Protocol: what the validation programs ask of the package that Debian
// does not have under the name they import. See __init__.py.
package tap

import (
	"encoding/json"
	"fmt"
	"strings"
)

// T counts the results of one program.
type T struct{ results int }

// New begins a report.
func New() *T { return &T{} }

// Header says how many results there will be; 0: AutoPlan will.
func (t *T) Header(planned int) {
	fmt.Println("TAP version 13")
	if planned > 0 {
		fmt.Printf("1..%d\n", planned)
	}
}

// Ok reports one result.
func (t *T) Ok(passed bool, description string) {
	t.results++
	word := "ok"
	if !passed {
		word = "not ok"
	}
	fmt.Printf("%s %d - %s\n", word, t.results, description)
}

// Pass is Ok(true).
func (t *T) Pass(description string) { t.Ok(true, description) }

// Fail is Ok(false).
func (t *T) Fail(description string) { t.Ok(false, description) }

// Skip reports so many results as left out.
func (t *T) Skip(count int, reason string) {
	for ; count > 0; count-- {
		t.results++
		fmt.Printf("ok %d # SKIP %s\n", t.results, reason)
	}
}

// Todo is the place for results that may fail.
func (t *T) Todo() *Todo { return &Todo{t} }

// Todo reports results that may fail.
type Todo struct{ report *T }

// Fail reports one that did.
func (o *Todo) Fail(description string) {
	o.report.results++
	fmt.Printf("ok %d # TODO %s\n", o.report.results, description)
}

// Ok reports one.
func (o *Todo) Ok(passed bool, description string) { o.report.Ok(true, description+" # TODO") }

// AutoPlan ends a report that began without a number of results.
func (t *T) AutoPlan() { fmt.Printf("1..%d\n", t.results) }

// Diagnostic is a comment.
func (t *T) Diagnostic(text string) {
	for _, line := range strings.Split(text, "\n") {
		fmt.Println("# " + line)
	}
}

// Diagnosticf is a comment by a format.
func (t *T) Diagnosticf(format string, values ...interface{}) { t.Diagnostic(fmt.Sprintf(format, values...)) }

// YAML adds details to the last result; JSON is YAML.
func (t *T) YAML(details interface{}) error {
	text, err := json.Marshal(details)
	if err == nil {
		fmt.Printf("  ---\n  %s\n  ...\n", text)
	}
	return err
}
