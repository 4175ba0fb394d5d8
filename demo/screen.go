package main

import (
	"fmt"
	"html"
	"io"
	"strconv"
	"strings"
	"time"
)

// screen shows lines, and remembers them with their moments.
type screen struct {
	out   io.Writer
	began time.Time
	shown []line
}

type line struct {
	at   time.Duration // since the beginning
	text string
}

func newScreen(out io.Writer) *screen { return &screen{out: out, began: time.Now()} }

func (s *screen) say(format string, args ...any) {
	l := line{time.Since(s.began), fmt.Sprintf(format, args...)}
	s.shown = append(s.shown, l)
	fmt.Fprintln(s.out, l.text)
}

// command shows what is typed.
func (s *screen) command(args []string) { s.say("$ turnstone %s", strings.Join(args, " ")) }

// tableLines is how many lines of an output are shown.
const tableLines = 14

// lines shows an output, its middle left out where it is long.
func (s *screen) lines(text string) {
	list := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i, l := range list {
		if left := len(list) - tableLines; left > 0 && i == tableLines-2 {
			s.say("... %d more", left+1)
		}
		if len(list) <= tableLines || i < tableLines-2 || i == len(list)-1 {
			s.say("%s", l)
		}
	}
}

// Measures of the picture, in units of its own.
const (
	columns, rows          = 118, 30
	lineHeight, charTenths = 18, 78
	margin                 = 14
	holdTime               = 6 * time.Second // what the end is shown for
)

// colors of lines by how they begin: what is typed, and what is said about it.
var colors = map[byte]string{'$': "#7ee787", '#': "#8b949e"}

// solid keeps the columns of tables: spaces in a picture are run together.
var solid = strings.NewReplacer(" ", "\u00a0")

// svg is what was shown as a picture that repeats it. Whoever does not animate it sees its end.
func (s *screen) svg() []byte {
	var b strings.Builder
	total := holdTime
	if n := len(s.shown); n > 0 {
		total += s.shown[n-1].at
	}
	width, height := columns*charTenths/10+2*margin, rows*lineHeight+2*margin
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" aria-label="A terminal: make demo">`+"\n", width, height, width, height)
	b.WriteString("<title>make demo, as it ran</title>\n")
	fmt.Fprintf(&b, `<rect width="%d" height="%d" rx="8" fill="#0d1117"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<svg x="%d" y="%d" width="%d" height="%d"><g font-family="ui-monospace, DejaVu Sans Mono, monospace" font-size="13" fill="#e6edf3"`, margin, margin, width-2*margin, rows*lineHeight)
	fmt.Fprintf(&b, ` transform="translate(0 %d)">`+"\n", -max(len(s.shown)-rows, 0)*lineHeight)
	b.WriteString(s.scroll(total))
	for i, l := range s.shown {
		color := ""
		if l.text != "" && colors[l.text[0]] != "" {
			color = fmt.Sprintf(` fill="%s"`, colors[l.text[0]])
		}
		text := l.text
		if len(text) > columns {
			text = text[:columns-3] + "..."
		}
		fmt.Fprintf(&b, `<text y="%d"%s>%s<animate attributeName="opacity" values="0;1" keyTimes="0;%s" calcMode="discrete" dur="%s" repeatCount="indefinite"/></text>`+"\n",
			i*lineHeight+lineHeight-4, color, solid.Replace(html.EscapeString(text)), share(l.at, total), seconds(total))
	}
	b.WriteString("</g></svg>\n</svg>\n")
	return []byte(b.String())
}

// scroll moves the lines up when there are more of them than rows.
func (s *screen) scroll(total time.Duration) string {
	if len(s.shown) <= rows {
		return ""
	}
	values, times := []string{"0 0"}, []string{"0"}
	for i := rows; i < len(s.shown); i++ {
		values = append(values, fmt.Sprintf("0 %d", -(i-rows+1)*lineHeight))
		times = append(times, share(s.shown[i].at, total))
	}
	return fmt.Sprintf(`<animateTransform attributeName="transform" type="translate" calcMode="discrete" values="%s" keyTimes="%s" dur="%s" repeatCount="indefinite"/>`+"\n",
		strings.Join(values, ";"), strings.Join(times, ";"), seconds(total))
}

// share is a moment as a part of the whole.
func share(at, total time.Duration) string {
	return strconv.FormatFloat(float64(at)/float64(total), 'f', 5, 64)
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 2, 64) + "s" }
