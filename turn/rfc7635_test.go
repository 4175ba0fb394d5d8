package turn

import (
	"time"

	"github.com/pion/stun/v3"
)

// withToken has a client ask for an allocation with a token, of a server that takes tokens.
func withToken(who func(*core) *caller) func(*core) *answerSeen {
	return func(c *core) *answerSeen {
		c.gate = NewGate(tokenConfig())
		return c.do(who(c), allocateMethod, transport(transportUDP))
	}
}

// rfc7635 is what third-party authorization requires of a server.
var rfc7635 = []requirement{
	{
		section: "6.1", text: "A server with keys of an authorization server names itself in THIRD-PARTY-AUTHORIZATION with 401, and with nothing else.",
		by: "turn:Gate.refuse", tests: "turn:TestThirdPartyAuthorization/Challenge turn:TestThirdPartyAuthorization/ChallengeWithoutKeys turn:TestThirdPartyAuthorization/Stale turn:TestThirdPartyAuthorization/Bad",
	},
	{
		section: "6.2", text: "To a server without keys ACCESS-TOKEN is unknown.",
		by: "turn:understood", tests: "turn:TestAccessTokenWithoutKeysIsUnknown",
		name: "NoKeys", code: 420, ask: asked(allocateMethod, transport(transportUDP), set(attrAccessToken, 1, 2, 3)),
	},
	{
		section: "6.2", text: "A token is AES-256-GCM over key, time and lifetime, bound to the name of the server.",
		by: "turn:openToken turn:TokenKey.Seal", tests: "turn:TestSealedToken turn:TestOpenTokenRefuses turn:TestSealRefuses",
	},
	{
		section: "7", text: "A token that does not open is refused, and looks like a wrong password.",
		by: "turn:tokens.open turn:Gate.authorize", tests: "turn:TestWrongTokensLookAlike turn:TestRefusedTokensTakeTheSameWork",
		name: "Tampered", code: 401, ask: withToken(func(c *core) *caller {
			who := tokenCaller(c.tb, c.now, time.Hour, "198.51.100.9:5000")
			who.token[len(who.token)-1] ^= 1
			return who
		}),
	},
	{
		section: "7", text: "The request is proved by the key in the token.",
		by: "turn:Gate.authorize", tests: "turn:TestWrongTokensLookAlike/OtherMAC",
		name: "OtherKey", code: 401, ask: withToken(func(c *core) *caller {
			who := tokenCaller(c.tb, c.now, time.Hour, "198.51.100.9:5000")
			who.mac = newMACKey
			return who
		}),
	},
	{
		section: "7", text: "A token is good from when it was made for its lifetime, give or take five seconds.",
		by: "turn:AccessToken.left", tests: "turn:TestAccessTokenIsGoodForItsTime/Over turn:TestAccessTokenIsGoodForItsTime/LastMoment turn:TestAccessTokenIsGoodForItsTime/ClockTooFarAhead",
		name: "Over", code: 401, ask: withToken(func(c *core) *caller { return tokenCaller(c.tb, at(-2*time.Hour), time.Hour, "198.51.100.9:5000") }),
	},
	{
		section: "9", text: "An allocation lasts no longer than its token; a new one in a Refresh takes its place.",
		by: "turn:Rules.lifetime turn:refresh", tests: "turn:TestAccessToken test:TestAccessTokenSurvivesRestart",
	},
	{
		section: "9", text: "The token of an allocation serves requests on it that bring none, with its key and by its user alone.",
		by: "turn:tokens.presented", tests: "turn:TestHeldTokenIsForItsKeyAlone",
		name: "AnotherUser", code: 441, ask: func(c *core) *answerSeen {
			c.gate = NewGate(tokenConfig())
			c.mustDo(0, tokenCaller(c.tb, c.now, time.Hour, alice().Client.String()), allocateMethod, transport(transportUDP))
			return c.do(alice(), stun.MethodRefresh)
		},
	},
}
