package top

import (
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/turn"

	"charm.land/bubbles/v2/help"
	"charm.land/bubbles/v2/key"
	tea "charm.land/bubbletea/v2"
)

// away says why there is no daemon.
type away struct{ err error }

// series is what a path relays in a direction.
type series struct {
	path     turn.Path
	toClient bool
}

// kept is how many intervals a sparkline goes back.
const kept = 300

type model struct {
	interval      time.Duration
	width, height int
	now           admin.Traffic // the last there was
	seen          bool          // there was one
	away          error         // why there is none now
	since         time.Time     // it is away
	paused        bool
	history       map[series][]float64 // bytes a second, the newest last
	keys          keys
	help          help.Model
}

type keys struct{ quit, pause key.Binding }

func (k keys) ShortHelp() []key.Binding  { return []key.Binding{k.quit, k.pause} }
func (k keys) FullHelp() [][]key.Binding { return [][]key.Binding{k.ShortHelp()} }

func newModel(interval time.Duration) *model {
	return &model{
		interval: interval, width: 80, height: 24, history: map[series][]float64{}, help: help.New(),
		keys: keys{
			quit:  key.NewBinding(key.WithKeys("q", "ctrl+c", "esc"), key.WithHelp("q", "quit")),
			pause: key.NewBinding(key.WithKeys("p", "space"), key.WithHelp("p", "pause")),
		},
	}
}

func (*model) Init() tea.Cmd { return nil }

func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.help.SetWidth(msg.Width)
	case tea.KeyPressMsg:
		switch {
		case key.Matches(msg, m.keys.quit):
			return m, tea.Quit
		case key.Matches(msg, m.keys.pause):
			m.paused = !m.paused
		}
	case admin.Traffic:
		m.take(msg)
	case away:
		if m.away == nil {
			m.since = time.Now()
		}
		m.away = msg.err
	}
	return m, nil
}

// take shows t, unless it is paused: the sparklines then only go on later.
func (m *model) take(t admin.Traffic) {
	m.away = nil
	if m.paused && m.seen {
		return
	}
	m.now, m.seen = t, true
	if t.Seconds == 0 {
		return
	}
	for _, p := range t.Paths {
		m.add(series{p.Path, false}, p.ToPeer.Bytes)
		m.add(series{p.Path, true}, p.ToClient.Bytes)
	}
}

func (m *model) add(s series, v float64) {
	h := append(m.history[s], v)
	m.history[s] = h[max(0, len(h)-kept):]
}

func (m *model) View() tea.View {
	v := tea.NewView(m.screen())
	v.AltScreen = true
	return v
}
