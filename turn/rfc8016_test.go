package turn

import "github.com/pion/stun/v3"

// moving has alice come to another address, with what bring makes of her ticket.
func moving(who *caller, bring func(*core, []byte) []byte) func(*core) *answerSeen {
	return func(c *core) *answerSeen {
		return c.do(who, stun.MethodRefresh, ticket(bring(c, c.mobile(alice()))))
	}
}

// rfc8016 is what mobility requires of a server.
var rfc8016 = []requirement{
	{
		section: "3", text: "An allocation follows its client to another address.",
		by: "turn:move turn/relay:Server.arrive", tests: "turn:TestTranscripts/mobility turn/relay:TestClientMoves turn/relay:TestClientMovesBetweenTransports turn/relay:TestMovesOutliveTheServer test:TestKernelFollowsAMobileClient test:TestKernelFollowsAClientBetweenTransports",
	},
	{
		section: "3.1.2", text: "Where mobility is not to be, an Allocate that asks for it is refused.",
		by: "turn:Request.asksMobility", tests: "turn:TestMobilityRefuses/3.1.2Forbidden turn/relay:TestMobilityIsForbidden",
		name: "Forbidden", code: 405, ask: under(func(r *Rules) { r.Tickets = nil }, asked(allocateMethod, transport(transportUDP), ticket(nil))),
	},
	{
		section: "3.1.2", text: "MOBILITY-TICKET is empty in an Allocate.",
		by: "turn:Request.asksMobility", tests: "turn:TestMobilityRefuses/3.1.2NotEmpty turn:TestMobilityRefuses/3.1.2Garbage",
		name: "NotEmpty", code: 400, ask: asked(allocateMethod, transport(transportUDP), ticket([]byte{1})),
	},
	{
		section: "3.1.2", text: "Who asks for it gets a ticket with success; who does not gets none.",
		by: "turn:Reply.ticketed turn:DecideBound", tests: "turn:TestTranscripts/mobility turn:TestMobilityRefuses/3.1.2WithoutIt",
	},
	{
		section: "3.2.2", text: "Where mobility is not to be, a Refresh with a ticket is refused.",
		by: "turn:move", tests: "turn:TestMobilityRefuses/3.2.2Forbidden",
		name: "Forbidden", code: 405, ask: moving(away(), func(c *core, b []byte) []byte { c.rules.Tickets = nil; return b }),
	},
	{
		section: "3.2.2", text: "A ticket that is not of this server, or not as it was given out, is bad.",
		by: "turn:Tickets.open turn:move", tests: "turn:TestMobilityRefuses/3.2.2Empty turn:TestMobilityRefuses/3.2.2Spoilt turn:TestMobilityRefuses/3.2.2Cut turn:TestMobilityRefuses/3.2.2OfAnotherKey turn:TestMobilityRefuses/3.2.2OfAnotherLog",
		name: "Spoilt", code: 400, ask: moving(away(), func(_ *core, b []byte) []byte { b[20] ^= 1; return b }),
	},
	{
		section: "3.2.2", text: "A ticket moves nothing to where the client is.",
		by: "turn:Allocation.admits", tests: "turn:TestMobilityRefuses/3.2.2FromWhereItIs turn:TestMobilityRefuses/3.2.2LastToWhereItMoves",
		name: "FromWhereItIs", code: 400, ask: moving(alice(), func(_ *core, b []byte) []byte { return b }),
	},
	{
		section: "3.2.2", text: "The ticket of an allocation that has ended is for none.",
		by: "turn:move", tests: "turn:TestMobilityRefuses/3.2.2Ended turn:TestMobilityRefuses/3.2.2Expired",
		name: "Ended", code: 437, ask: moving(away(), func(c *core, b []byte) []byte { c.mustDo(0, alice(), stun.MethodRefresh, lifetime(0)); return b }),
	},
	{
		section: "3.2.2", text: "It is brought by the user whose allocation it is for.",
		by: "turn:move turn:Rules.same", tests: "turn:TestMobilityRefuses/3.2.2OfAnotherUser turn:TestMobilityRefuses/3.2.2WhereAnotherUsersIs",
		name: "OtherUser", code: 441, ask: moving(bob(), func(_ *core, b []byte) []byte { return b }),
	},
	{
		section: "3.2.2", text: "It moves nothing to where another allocation is.",
		by: "turn:move", tests: "turn:TestMobilityRefuses/3.2.2WhereAnotherIs",
		name: "WhereAnotherIs", code: 437, ask: moving(away(), func(c *core, b []byte) []byte { c.allocated(away()); return b }),
	},
	{
		section: "3.2.2", text: "Each move gets a new ticket; one that was used is good no more once data has come from where it led.",
		by: "turn:Allocation.admits turn:Arrive", tests: "turn:TestMobilityRefuses/3.2.2UsedAndLeft turn:TestMobilityRefuses/3.2.2Lost turn:TestTranscripts/mobility",
		name: "UsedAndLeft", code: 400, ask: moving(newCaller("alice", "wonderland", "198.51.100.9:6001"), func(c *core, b []byte) []byte {
			c.mustDo(0, away(), stun.MethodRefresh, ticket(b))
			c.record(Arrive(c.state, away().FiveTuple)...)
			return b
		}),
	},
	{
		section: "3.1.2", text: "Mobility is for UDP allocations.",
		by: "turn:Request.asksMobility", tests: "turn:TestConnectionsDoNotMove",
		name: "AllocationForTCP", code: 405, ask: func(c *core) *answerSeen {
			return c.do(alice().over(TCP), allocateMethod, transport(transportTCP), ticket(nil))
		},
	},
	{
		section: "3.2.2", text: "The old five-tuple holds until data comes from the new one.",
		by: "turn:Arrive turn:State.left turn/relay:Server.arrive kernel:toPeer kernel:toClient", tests: "turn:TestTranscripts/mobility turn:TestLaws turn/relay:TestClientMoves turn/relay:TestSendIndicationArrives kernel:TestFlowsGoWithTheirClient test:TestKernelFollowsAMobileClient test:TestKernelLosesNothingOfAClientThatMoves",
	},
	{
		section: "3.3", text: "A ticket is encrypted and cannot be forged, and says nothing to its client.",
		by: "turn:Tickets.seal turn:Tickets.open", tests: "turn:TestTickets",
	},
}
