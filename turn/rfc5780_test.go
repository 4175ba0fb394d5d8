package turn

import "github.com/pion/stun/v3"

// discovered has alice ask a server with two addresses and two ports.
func discovered(attributes ...stun.Setter) func(*core) *answerSeen {
	return func(c *core) *answerSeen {
		config := testGateConfig()
		config.Discoveries = []Discovery{{Ports: [2]uint16{3478, 3479}}}
		config.Discoveries[0].Addresses[0], config.Discoveries[0].Addresses[1] = addr("192.0.2.1"), addr("192.0.2.2")
		c.gate = NewGate(config)
		return c.send(alice(), plain(stun.MethodBinding, txid(1), attributes...))
	}
}

// rfc5780 is what NAT behaviour discovery requires of a server.
var rfc5780 = []requirement{
	{
		section: "6", text: "A server without a second address knows nothing of CHANGE-REQUEST, PADDING and RESPONSE-PORT.",
		by: "turn:Gate.discovery turn:Gate.binding", tests: "turn:TestDiscovery/6NoSecondAddress turn:TestDiscovery/6NoSecondAddressNoneOfIt test:TestNoDiscovery",
		name: "NoSecondAddress", code: 420, ask: func(c *core) *answerSeen {
			return c.send(alice(), plain(stun.MethodBinding, txid(1), changeRequest(changePort)))
		},
	},
	{
		section: "6", text: "Nor does it over a stream, which has one way back.",
		by: "turn:Gate.discovery", tests: "turn:TestDiscovery/6NotOnStreams turn:TestDiscovery/7.4NotOnStreams",
	},
	{
		section: "6", text: "The attributes are of Binding requests alone.",
		by: "turn:knownAttribute", tests: "turn:TestDiscoveryIsOfBindingRequests",
		name: "Allocate", code: 420, ask: asked(allocateMethod, transport(transportUDP), changeRequest(changePort)),
	},
	{
		section: "6.1", text: "The answer comes from the address and port that CHANGE-REQUEST asks for.",
		by: "turn:Discovery.prepare turn/relay:Server.originOf", tests: "turn:TestDiscovery/6.1ChangeIP turn:TestDiscovery/6.1ChangePort turn:TestDiscovery/6.1ChangeBoth turn/relay:TestDiscoveryAnswersFromWhereItIsAsked test:TestDiscovery",
	},
	{
		section: "6.1", text: "PADDING and RESPONSE-PORT do not come together.",
		by: "turn:Discovery.prepare", tests: "turn:TestDiscovery/6.1PaddingAndResponsePort",
		name: "PaddingAndResponsePort", code: 400, ask: discovered(padding(4), set(stun.AttrResponsePort, 0x12, 0x34)),
	},
	{
		section: "6.1", text: "Success has RESPONSE-ORIGIN, OTHER-ADDRESS and MAPPED-ADDRESS beside XOR-MAPPED-ADDRESS.",
		by: "turn:Reply.addDiscovery", tests: "turn:TestDiscovery/6.1Plain turn:TestDiscovery/7.4NoOtherAddressThere",
	},
	{
		section: "7.2", text: "CHANGE-REQUEST has four bytes, of which two bits count.",
		by: "turn:Discovery.prepare", tests: "turn:TestDiscovery/7.2Malformed turn:TestDiscovery/7.2OtherBitsMeanNothing",
		name: "ChangeRequestOfOtherLength", code: 400, ask: discovered(set(stun.AttrChangeRequest, 6)),
	},
	{
		section: "7.5", text: "RESPONSE-PORT is the port of the client to answer to, at the address that it asks from.",
		by: "turn:Reply.To turn:responsePort", tests: "turn:TestDiscovery/7.5ResponsePort turn/relay:TestDiscoveryAnswersToAnotherPort",
		name: "PortZero", code: 400, ask: discovered(set(stun.AttrResponsePort, 0, 0)),
	},
	{
		section: "7.6", text: "PADDING is a multiple of four bytes, as long as the MTU.",
		by: "turn:Discovery.prepare turn:maxPadding", tests: "turn:TestDiscovery/7.6MultipleOfFour turn:TestDiscovery/10PaddingAmplifiesNothing turn:TestDiscovery/10LongPaddingIsCut turn/relay:TestDiscoveryAnswersWithPadding",
		but: "it is no longer than that of the request, and than 1500 bytes: a forged request is not to make a larger answer.",
	},
	{
		section: "9", text: "Answers to who has proved nothing are limited in their rate.",
		by: "turn/relay:limiter.allow", tests: "turn/relay:TestUnauthenticatedFloodIsCutOff turn/relay:TestLimiterBoundsASource",
	},
}
